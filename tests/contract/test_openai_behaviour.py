"""What OpenAI's clients rely on, sentence by sentence, against the whole product: one class a paragraph, one test a
sentence. What needs a daemon that breaks on purpose is shown by the tests that ELSEWHERE names.
"""

from __future__ import annotations

import ast
import base64
import json
import math
import re
import socket
import struct
from pathlib import Path
from typing import Any

import httpx
import pytest
from inferd_gateway.http_protocol import server_options
from inferd_gateway.sse import PING

from inferd.testing.http_fields import CHAT_PATH, COMPLETION_PATH, NAMED, TOOL
from inferd.testing.http_meanings import SCHEMA
from inferd.testing.parity import Entrances, events_of
from inferd.testing.product import Product, wait_until
from inferd.testing.tiny_chat import BOS_ID, CONTEXT, END, EOS_ID, VOCAB

ROOT = Path(__file__).resolve().parents[2]
# Sentence -> the tests that show it with a daemon that does as they say.
ELSEWHERE = {
    "comments every 15 s while queued": ["gateway/test_sse.py::test_comments_while_queued"],
    "an error in mid-stream is an event, and no [DONE]": ["gateway/test_sse.py::test_error_in_mid_stream"],
    "keep-alive reuse after [DONE]": ["gateway/test_sse.py::test_the_connection_is_kept_for_the_next_request"],
    "usage also after aborts by length": ["gateway/test_sse.py::test_usage_when_the_length_ends_it"],
    "401 with WWW-Authenticate": ["gateway/test_access.py::test_keys"],
    "413": ["gateway/test_errors.py::test_bodies_that_are_too_large"],
    "429 with integer Retry-After, 500 opaque, x-should-retry": [
        "contract/test_errors.py::test_over_http",
        "gateway/test_errors.py::test_our_own_bugs_are_opaque",
        "gateway/test_sdk.py::test_the_sdk_retries_what_may_be_retried",
    ],
    "CORS, preflight without a key, * never with credentials": [
        "gateway/test_access.py::test_cors",
        "gateway/test_access.py::test_cors_for_all_and_for_none",
    ],
    "--strict-params": ["gateway/test_errors.py::test_unknown_fields_are_refused_when_strict"],
    "ignored fields are counted": ["gateway/test_errors.py::test_unknown_fields_are_reported"],
    "the SDK exposes _request_id": ["gateway/test_sdk.py::test_raw_response_and_ignored_fields"],
    "tool_choice auto, parallel calls": [
        "gateway/test_tools.py::test_a_stream_is_as_openai_cuts_it",
        "gateway/test_tools.py::test_calls_of_a_whole_reply",
    ],
    '"" is refused where no BOS exists': ["gateway/test_replies.py::test_invalid_completions"],
    "disconnect frees the blocks": ["e2e/test_batching_is_invisible.py::test_a_cancelled_stream_frees_its_blocks"],
}


class Asking:
    """Short ways to ask."""

    @pytest.fixture(autouse=True)
    def _product(self, entrances: Entrances) -> None:
        self.entrances = entrances
        self.http = entrances.http

    def chat(self, content: Any = "hello", **fields: Any) -> httpx.Response:
        body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0}
        return self.entrances.post(CHAT_PATH, body | fields)

    def complete(self, prompt: Any = "hello", **fields: Any) -> httpx.Response:
        return self.entrances.post(COMPLETION_PATH, {"model": "tiny", "prompt": prompt, "temperature": 0} | fields)

    def say(self, text: str) -> dict[str, Any]:
        """Fields that make the model say exactly this."""
        return {"structured_outputs": {"choice": [text]}, "max_tokens": 60}

    def refused(self, response: httpx.Response, param: str | None, status: int = 400) -> dict[str, Any]:
        body = response.json()
        assert (response.status_code, body["error"]["param"]) == (status, param), body
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        error: dict[str, Any] = body["error"]
        return error


def chunks(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return events_of(response.text)


def deltas(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [choice for event in events for choice in event["choices"]]


def said(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in deltas(events))


def test_what_is_shown_elsewhere_is_there() -> None:
    for tests in ELSEWHERE.values():
        for name in tests:
            path, _, function = name.partition("::")
            tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
            assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


class TestServerSentEvents(Asking):
    def test_headers(self) -> None:
        headers = self.chat(stream=True).headers
        assert headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")

    def test_each_event_is_one_line_of_data_and_done_is_last(self) -> None:
        blocks = self.chat(stream=True, n=2).text.split("\n\n")
        assert blocks[-2:] == ["data: [DONE]", ""]
        assert all(re.fullmatch(r"data: \{.*\}", block) for block in blocks[:-2])

    def test_a_character_is_never_split(self) -> None:
        events = chunks(self.chat(stream=True, **self.say("é日🙂ü")))
        assert said(events) == "é日🙂ü"
        assert not any("\ufffd" in json.dumps(event, ensure_ascii=False) for event in events)

    def test_comments_are_legal(self) -> None:
        assert re.fullmatch(rb": [^\n]*\n\n", PING)

    def test_errors_before_the_first_token_are_statuses(self) -> None:
        response = self.chat(stream=True, temperature=3)
        self.refused(response, "temperature")
        assert response.headers["content-type"] == "application/json"

    def test_the_first_chat_chunk_has_the_role_and_the_last_the_finish(self) -> None:
        first, *middle, last = deltas(chunks(self.chat(stream=True)))
        assert first["delta"] == {"role": "assistant", "content": ""}
        assert not any("role" in choice["delta"] for choice in middle)
        assert (last["delta"], last["finish_reason"]) == ({}, "length")

    def test_what_is_equal_in_all_chunks(self) -> None:
        for events, kind in (
            (chunks(self.chat(stream=True)), "chat.completion.chunk"),
            (chunks(self.complete(stream=True)), "text_completion"),
        ):
            assert {event["object"] for event in events} == {kind}
            for name in ("id", "created", "model", "system_fingerprint"):
                assert len({event[name] for event in events}) == 1
        assert all("text" in choice for choice in deltas(events))

    def test_choices_interleave_and_each_finishes_once(self) -> None:
        found = deltas(chunks(self.chat(stream=True, n=3, max_tokens=12, temperature=1, seed=3)))
        order = [choice["index"] for choice in found]
        assert set(order) == {0, 1, 2}
        assert order != sorted(order)
        assert sorted(choice["index"] for choice in found if choice["finish_reason"]) == [0, 1, 2]

    @pytest.mark.parametrize(
        ("stop", "text"),
        [(None, "hello wörld, again"), ("wör", "hello "), (["ld", "never"], "hello wör"), ("o w", "hell")],
    )
    def test_chunks_add_up_to_the_whole_and_no_stop_text_leaks(self, stop: Any, text: str) -> None:
        fields = self.say("hello wörld, again") | {"stop": stop}
        whole = self.chat(**fields).json()["choices"][0]
        events = chunks(self.chat(stream=True, **fields))
        assert said(events) == whole["message"]["content"] == text
        texts = chunks(self.complete(stream=True, **fields))
        assert "".join(choice["text"] for choice in deltas(texts)) == text


class TestUsage(Asking):
    def test_absent_unless_asked_for(self) -> None:
        assert not any(event.get("usage") for event in chunks(self.chat(stream=True)))

    def test_in_one_more_chunk(self) -> None:
        # Of one token: how many share a chunk is a matter of speed.
        without = chunks(self.chat(stream=True, max_tokens=1))
        events = chunks(self.chat(stream=True, max_tokens=1, stream_options={"include_usage": True}))
        assert len(events) == len(without) + 1
        assert [event["usage"] for event in events[:-1]] == [None] * len(without)
        assert events[-1]["choices"] == []
        whole = self.chat(max_tokens=1).json()["usage"]
        assert {**events[-1]["usage"], "prompt_tokens_details": 0} == {**whole, "prompt_tokens_details": 0}

    def test_stream_options_need_a_stream(self) -> None:
        self.refused(self.chat(stream_options={"include_usage": True}), "stream_options")
        self.refused(self.complete(stream=False, stream_options={"include_usage": True}), "stream_options")

    def test_continuous_usage(self) -> None:
        options = {"include_usage": True, "continuous_usage_stats": True}
        counts = [
            event["usage"]["completion_tokens"] for event in chunks(self.chat(stream=True, stream_options=options))
        ]
        assert counts == sorted(counts)
        assert counts[-1] == 6

    def test_the_prompt_counts_the_template(self) -> None:
        reply = self.chat(return_token_ids=True).json()
        assert reply["usage"]["prompt_tokens"] == len(reply["prompt_token_ids"]) > len("hello")

    def test_cached_tokens_are_told(self) -> None:
        fields = {"cache_salt": "usage", "content": "a prompt that is longer than a block of the cache, surely"}
        counts = [self.chat(**fields).json()["usage"]["prompt_tokens_details"]["cached_tokens"] for _ in range(2)]
        assert counts[0] == 0 < counts[1]

    def test_an_end_of_text_counts_streamed_or_not(self) -> None:
        fields = {"logit_bias": {str(EOS_ID): 100}, "max_tokens": 5}
        usage = self.chat(**fields).json()["usage"]
        events = chunks(self.chat(**fields, stream=True, stream_options={"include_usage": True}))
        assert usage["completion_tokens"] == events[-1]["usage"]["completion_tokens"] == 1


class TestErrors(Asking):
    def test_unknown_model(self) -> None:
        error = self.refused(self.chat(model="nope"), "model", 404)
        assert error["code"] == "model_not_found"

    @pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"messages": 7}', '{"temperature": "x"}'])
    def test_a_bad_body_is_400_and_not_fastapis_422(self, body: str) -> None:
        response = self.entrances.post(CHAT_PATH, body)
        assert response.status_code == 400
        assert set(response.json()) == {"error"}
        assert "detail" not in response.json()

    def test_wrong_content_type(self) -> None:
        response = self.http.post(CHAT_PATH, content="{}", headers={"content-type": "text/plain"})
        self.refused(response, None, 415)

    def test_unknown_route_and_method(self) -> None:
        self.refused(self.http.get("/v2/nothing"), None, 404)
        response = self.http.delete(CHAT_PATH)
        self.refused(response, None, 405)
        assert response.headers["allow"] == "OPTIONS, POST"


class TestHeaders(Asking):
    def test_request_id_echoes_a_sane_one(self) -> None:
        assert self.http.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
        for wanted in (None, "x" * 129, "a b"):
            headers = {} if wanted is None else {"x-request-id": wanted}
            assert self.http.get("/health", headers=headers).headers["x-request-id"].startswith("req_")

    def test_request_id_is_on_everything(self) -> None:
        responses = [
            self.chat(), self.chat(stream=True), self.chat(temperature=9), self.http.get("/nothing"),
            self.http.put(CHAT_PATH), self.http.get("/metrics"), self.http.options(CHAT_PATH),
            self.http.head("/health"), self.http.post(CHAT_PATH, content=b"\xff"),
        ]  # fmt: skip
        assert all(response.headers["x-request-id"] for response in responses)

    def test_openais_own(self) -> None:
        headers = self.chat().headers
        assert int(headers["openai-processing-ms"]) >= 0
        assert headers["openai-version"] == "2020-10-01"

    def test_connections_outlive_idle_clients(self) -> None:
        assert server_options()["timeout_keep_alive"] == 75

    @pytest.mark.parametrize("path", ["/health", "/v1/models"])
    def test_head_is_200_without_a_body(self, path: str) -> None:
        response = self.http.head(path)
        assert (response.status_code, response.content) == (200, b"")

    def test_a_slash_at_the_end_is_served(self) -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1}
        assert self.entrances.post(COMPLETION_PATH + "/", body).status_code == 200
        assert self.http.get("/v1/models/").status_code == 200

    def test_streams_whatever_is_accepted(self) -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 1, "stream": True}
        response = self.http.post(COMPLETION_PATH, json=body, headers={"accept": "application/json"})
        assert response.headers["content-type"].startswith("text/event-stream")

    def test_unknown_fields_are_named_and_unknown_values_refused(self) -> None:
        response = self.chat(no_such_field=1)
        assert (response.status_code, response.headers["x-inferd-ignored-params"]) == (200, "no_such_field")
        self.refused(self.chat(response_format={"type": "yaml"}), "response_format.type")
        self.refused(self.chat(modalities=["audio"]), "modalities")


class TestIdsAndTypes(Asking):
    def test_ids_and_times(self) -> None:
        for reply, prefix in ((self.chat().json(), "chatcmpl-"), (self.complete().json(), "cmpl-")):
            assert reply["id"].startswith(prefix)
            assert type(reply["created"]) is int
            assert isinstance(reply["system_fingerprint"], str)

    def test_log_probabilities_are_finite(self) -> None:
        fields = {"logit_bias": {"98": -100}, "logprobs": 20, "max_tokens": 3, "logprob_token_ids": [98]}
        text = self.complete(**fields).text
        assert "Infinity" not in text
        assert "NaN" not in text
        values = json.loads(text)["choices"][0]["logprobs"]["token_logprobs"]
        assert all(math.isfinite(value) and value >= -9999 for value in values)


class TestChatFields(Asking):
    def test_the_message(self) -> None:
        message = self.chat().json()["choices"][0]["message"]
        assert isinstance(message["content"], str)
        assert message["refusal"] is None
        assert "tool_calls" not in message

    def test_content_is_null_beside_tool_calls(self) -> None:
        reply = self.chat(tools=[TOOL], tool_choice=NAMED, max_tokens=60).json()
        message = reply["choices"][0]["message"]
        assert message["content"] is None
        assert message["tool_calls"][0]["function"]["name"] == "f"

    def test_max_completion_tokens_wins(self) -> None:
        usage = self.chat(max_tokens=6, max_completion_tokens=2).json()["usage"]
        assert usage["completion_tokens"] == 2

    def test_temperature_0_is_greedy(self) -> None:
        texts = {self.chat(seed=seed).json()["choices"][0]["message"]["content"] for seed in (1, 2, 3)}
        assert len(texts) == 1

    def test_top_p_0_is_refused(self) -> None:
        self.refused(self.chat(top_p=0), "top_p")

    @pytest.mark.parametrize("stop", ["x", ["a", "b", "c", "d"], [f"stop {n}" for n in range(64)], None, []])
    def test_stop_is_a_text_many_or_none(self, stop: Any) -> None:
        assert self.chat(stop=stop).status_code == 200
        self.refused(self.chat(stop=[f"stop {n}" for n in range(65)]), "stop")

    @pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
    def test_seeds_are_any_int64(self, seed: int) -> None:
        first, second = (self.chat(seed=seed, temperature=1).json()["choices"][0]["message"] for _ in range(2))
        assert first == second

    def test_what_is_accepted_and_ignored(self) -> None:
        ignored = {
            "user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "reasoning_effort": None,
            "service_tier": "auto", "prediction": {"type": "content", "content": "x"},
        }  # fmt: skip
        response = self.chat(**ignored)
        assert response.json()["choices"] == self.chat().json()["choices"]
        assert "x-inferd-ignored-params" not in response.headers

    @pytest.mark.parametrize("bias", [{"98": 101}, {"98": -101}, {"x": 1}, {"-1": 1}, {str(VOCAB): 1}, {"1.5": 1}])
    def test_logit_bias_has_bounds_and_ids_for_keys(self, bias: dict[str, float]) -> None:
        self.refused(self.chat(logit_bias=bias), "logit_bias")
        assert self.chat(logit_bias={"98": 100}, max_tokens=3).json()["choices"][0]["message"]["content"] == "bbb"

    def test_developer_is_system(self) -> None:
        turns = [
            [{"role": role, "content": "be"}, {"role": "user", "content": "x"}] for role in ("system", "developer")
        ]
        first, second = (self.chat(messages=turn, return_token_ids=True).json() for turn in turns)
        assert first["prompt_token_ids"] == second["prompt_token_ids"]

    def test_content_as_parts_a_name_and_an_assistant_without_content(self) -> None:
        parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
        ids = [self.chat(content, return_token_ids=True).json()["prompt_token_ids"] for content in (parts, "hel\nlo")]
        assert ids[0] == ids[1]
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [
            {"role": "user", "name": "ann", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c", "content": "y"},
        ]
        assert self.chat(messages=messages).status_code == 200

    def test_response_format(self) -> None:
        strict = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
        for wanted in ({"type": "json_object"}, strict):
            fields = {"response_format": wanted, "max_tokens": 200, "logit_bias": {"123": 5, "125": 100, "32": -100}}
            assert isinstance(json.loads(self.chat(**fields).json()["choices"][0]["message"]["content"]), dict)
        assert self.chat(response_format={"type": "text"}).json()["choices"] == self.chat().json()["choices"]

    def test_n_with_a_stream(self) -> None:
        found = deltas(chunks(self.chat(stream=True, n=2)))
        assert {choice["index"] for choice in found} == {0, 1}

    def test_no_messages(self) -> None:
        self.refused(self.chat(messages=[]), "messages")

    def test_the_last_message_may_be_continued(self) -> None:
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "so"}]
        reply = self.chat(messages=messages, continue_final_message=True, return_token_ids=True).json()
        assert bytes(reply["prompt_token_ids"][-2:]) == b"so"


class TestToolDeltas(Asking):
    FORCED = {"tools": [TOOL], "tool_choice": NAMED, "parallel_tool_calls": False, "max_tokens": 60}  # noqa: RUF012  # read only

    def test_the_first_has_the_name_and_the_rest_the_arguments(self) -> None:
        found = deltas(chunks(self.chat(stream=True, **self.FORCED)))
        calls = [call for choice in found for call in choice["delta"].get("tool_calls", [])]
        first, *rest = calls
        assert set(first) == {"index", "id", "type", "function"}
        assert (first["index"], first["type"], first["function"]) == (0, "function", {"name": "f", "arguments": ""})
        assert all(set(call) == {"index", "function"} and set(call["function"]) == {"arguments"} for call in rest)
        assert json.loads("".join(call["function"]["arguments"] for call in calls))["x"] in (1, 2)
        assert found[-1]["finish_reason"] == "tool_calls"

    @pytest.mark.parametrize("choice", ["none", "required", NAMED])
    def test_tool_choice(self, choice: Any) -> None:
        reply = self.chat(**self.FORCED | {"tool_choice": choice}).json()["choices"][0]
        assert (reply["finish_reason"] == "tool_calls") == (choice != "none")
        assert ("tool_calls" in reply["message"]) == (choice != "none")

    def test_unknown_function(self) -> None:
        wanted = {"type": "function", "function": {"name": "g"}}
        self.refused(self.chat(tools=[TOOL], tool_choice=wanted), "tool_choice")


class TestLogprobs(Asking):
    def test_chat(self) -> None:
        logprobs = self.chat(logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]
        assert logprobs["refusal"] is None
        assert len(logprobs["content"]) == 6
        for row in logprobs["content"]:
            assert set(row) == {"token", "logprob", "bytes", "top_logprobs"}
            assert len(row["top_logprobs"]) == 3

    def test_top_logprobs_have_a_bound_and_need_logprobs(self) -> None:
        assert self.chat(logprobs=True, top_logprobs=20).status_code == 200
        self.refused(self.chat(logprobs=True, top_logprobs=21), "top_logprobs")
        self.refused(self.chat(top_logprobs=1), "top_logprobs")

    def test_streamed_they_are_as_many(self) -> None:
        whole = self.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
        found = deltas(chunks(self.chat(logprobs=True, stream=True)))
        rows = [row for choice in found if choice["logprobs"] for row in choice["logprobs"]["content"]]
        assert rows == whole

    def test_bytes_rebuild_split_characters(self) -> None:
        rows = self.chat(logprobs=True, **self.say("日🙂")).json()["choices"][0]["logprobs"]["content"]
        assert bytes(byte for row in rows for byte in row["bytes"]).startswith("日🙂".encode())

    def test_completions(self) -> None:
        for wanted in (0, 5, 20):
            found = self.complete(logprobs=wanted).json()["choices"][0]["logprobs"]
            assert {len(column) for column in found.values()} == {16}
            assert all(len(top) in (max(wanted, 1), wanted + 1) for top in found["top_logprobs"])
        self.refused(self.complete(logprobs=21), "logprobs")

    def test_zero_gives_the_chosen_token_only(self) -> None:
        found = self.complete(logprobs=0).json()["choices"][0]["logprobs"]
        assert [list(top) for top in found["top_logprobs"]] == [[token] for token in found["tokens"]]

    def test_echo_prepends_the_prompt(self) -> None:
        choice = self.complete("the prompt", echo=True, logprobs=1, max_tokens=2).json()["choices"][0]
        assert choice["text"].startswith("the prompt")
        assert choice["logprobs"]["token_logprobs"][0] is None
        assert choice["logprobs"]["top_logprobs"][0] is None
        assert choice["logprobs"]["text_offset"][0] == 0

    def test_echo_without_tokens_scores_the_prompt(self) -> None:
        choice = self.complete("the prompt", echo=True, logprobs=1, max_tokens=0).json()["choices"][0]
        assert choice["text"] == "the prompt"
        assert None not in choice["logprobs"]["token_logprobs"][1:]

    @pytest.mark.parametrize(
        ("prompt", "text", "offsets"),
        [
            ("é", "é", [0, 0]),
            (f"a{END}b", f"a{END}b", [0, 1, 1 + len(END)]),  # a control token is part of what was read
            ([97, EOS_ID, 98], f"a{END}b", [0, 1, 1 + len(END)]),
            ([0xA9, 97], "\ufffda", [0, 1]),  # begins inside a character
            ([97, *"日".encode()], "a日", [0, 1, 1, 1]),
            ([0xE6, 97], "\ufffda", [0, 1]),  # a character that is never finished
        ],
    )
    def test_echo_is_what_was_read(self, prompt: Any, text: str, offsets: list[int]) -> None:
        fields = {"echo": True, "logprobs": 0, **self.say("xy"), "add_special_tokens": False}
        if isinstance(prompt, list):
            del fields["add_special_tokens"]
        choice = self.complete(prompt, **fields).json()["choices"][0]
        assert choice["text"] == text + "xy"
        told = choice["logprobs"]
        assert told["text_offset"][: len(offsets) + 1] == [*offsets, len(text)]
        for token, at in zip(told["tokens"], told["text_offset"], strict=True):
            assert token.startswith("bytes:") or choice["text"].startswith(token, at)

    def test_echo_finishes_a_character_once(self) -> None:
        ids = [97, *"日".encode()[:2]]
        fields = {"echo": True, "logprobs": 0, "max_tokens": 1, "allowed_token_ids": ["日".encode()[2]]}
        choice = self.complete(ids, **fields).json()["choices"][0]
        assert choice["text"] == "a日"
        assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1]

    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("keep", [-1, 3])
    def test_echo_of_a_truncated_prompt_is_what_was_left_of_it(self, keep: int, stream: bool) -> None:
        fields = {"echo": True, "logprobs": 0, "truncate_prompt_tokens": keep, "stream": stream}
        answer = self.complete("b" * 5000 + "cde", **fields, **self.say("xy"))
        choices = deltas(chunks(answer)) if stream else answer.json()["choices"]
        text = "".join(choice["text"] for choice in choices)
        tokens = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["tokens"]]
        assert text.endswith("cdexy")
        assert tokens == list(text)
        assert len(text) == 5 if keep == 3 else len(text) < 5000

    def test_offsets_are_in_characters_and_rise_over_the_stream(self) -> None:
        fields = {"echo": True, "logprobs": 1, **self.say("üx日y")}
        whole = self.complete("é", **fields).json()["choices"][0]
        events = chunks(self.complete("é", stream=True, **fields))
        offsets = [at for choice in deltas(events) if choice["logprobs"] for at in choice["logprobs"]["text_offset"]]
        assert offsets == whole["logprobs"]["text_offset"] == sorted(offsets)
        assert whole["text"] == "éüx日y"
        for token, at in zip(whole["logprobs"]["tokens"], offsets, strict=True):
            assert token not in ("x", "y") or whole["text"][at] == token


class TestCompletions(Asking):
    @pytest.mark.parametrize(("prompt", "count"), [("ab", 1), (["ab", "c"], 2), ([97, 98], 1), ([[97], [98, 99]], 2)])
    def test_forms_of_a_prompt(self, prompt: Any, count: int) -> None:
        assert len(self.complete(prompt, max_tokens=1).json()["choices"]) == count

    def test_an_empty_list_is_refused(self) -> None:
        self.refused(self.complete([]), "prompt")

    def test_an_empty_text_will_do_where_a_bos_exists(self) -> None:
        reply = self.complete("", max_tokens=1, return_token_ids=True).json()
        assert reply["choices"][0]["prompt_token_ids"] == [BOS_ID]
        self.refused(self.complete("", add_special_tokens=False), "prompt")

    def test_choices_are_prompt_major(self) -> None:
        fields = {"n": 2, "max_tokens": 1, "return_token_ids": True}
        choices = self.complete([[97], [97, 98]], **fields).json()["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]
        assert [len(choice["prompt_token_ids"]) for choice in choices] == [1, 1, 2, 2]

    def test_suffix_and_best_of(self) -> None:
        self.refused(self.complete(suffix="x"), "suffix")
        self.refused(self.complete(best_of=1, n=2), "best_of")

    def test_16_tokens_unless_asked(self) -> None:
        reply = self.complete(ignore_eos=True).json()
        assert reply["usage"]["completion_tokens"] == 16

    def test_an_id_outside_the_vocabulary(self) -> None:
        self.refused(self.complete([VOCAB]), "prompt")


class TestEmbeddings:
    @pytest.fixture(autouse=True)
    def _client(self, both_models: httpx.Client) -> None:
        self.client = both_models

    def embed(self, given: Any, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/embeddings", json={"model": "tiny-embedder", "input": given, **fields})

    def vectors(self, given: Any, **fields: Any) -> list[Any]:
        body = self.embed(given, **fields).json()
        assert body["object"] == "list"
        assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
        assert {item["object"] for item in body["data"]} == {"embedding"}
        return [item["embedding"] for item in body["data"]]

    def refused(self, response: httpx.Response, param: str) -> None:
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text

    def test_forms_of_input_in_order(self) -> None:
        texts = self.vectors(["the cat", "a dog"])
        assert [self.vectors("the cat")[0], self.vectors("a dog")[0]] == [pytest.approx(row, abs=1e-6) for row in texts]
        assert len(self.vectors([5, 6])) == 1
        assert len(self.vectors([[5, 6], [7]])) == 2

    def test_float_is_the_default_and_base64_little_endian_float32(self) -> None:
        (floats,), (text,) = self.vectors("the cat"), self.vectors("the cat", encoding_format="base64")
        assert list(struct.unpack(f"<{len(floats)}f", base64.b64decode(text))) == floats

    def test_dimensions(self) -> None:
        (whole,), (cut,) = self.vectors("the cat"), self.vectors("the cat", dimensions=8)
        norm = math.sqrt(sum(value * value for value in whole[:8]))
        assert cut == pytest.approx([value / norm for value in whole[:8]], abs=1e-6)
        self.refused(self.embed("the cat", dimensions=7), "dimensions")

    def test_empty_and_over_long_inputs(self) -> None:
        for given in ("", [""], [], [[]]):
            self.refused(self.embed(given), "input")
        self.refused(self.embed("cat " * 200), "input")
        assert self.embed("cat " * 200, truncate_prompt_tokens=-1).status_code == 200

    def test_usage(self) -> None:
        usage = self.embed(["the cat", "a dog"]).json()["usage"]
        assert usage == {"prompt_tokens": 8, "total_tokens": 8}

    def test_one_gateway_serves_the_models_of_both_daemons(self) -> None:
        names = [model["id"] for model in self.client.get("/v1/models").json()["data"]]
        assert set(names) == {"tiny", "other-name", "org/tiny", "tiny-embedder"}
        body = {"model": "org/tiny", "prompt": "x", "max_tokens": 1}
        assert self.client.post("/v1/completions", json=body).json()["model"] == "org/tiny"
        refused = self.client.post("/v1/completions", json=body | {"model": "tiny-embedder"}).json()["error"]
        assert refused["code"] == "unsupported_task"


class TestModels(Asking):
    def test_the_list(self) -> None:
        body = self.http.get("/v1/models").json()
        assert body["object"] == "list"
        for model in body["data"]:
            assert (model["object"], type(model["created"]), type(model["owned_by"])) == ("model", int, str)
        assert [model["id"] for model in body["data"]] == ["tiny", "other-name", "org/tiny"]

    @pytest.mark.parametrize("path", ["org/tiny", "org%2Ftiny", "tiny", "other-name"])
    def test_one_of_them(self, path: str) -> None:
        assert self.http.get(f"/v1/models/{path}").json()["id"] == path.replace("%2F", "/")

    def test_an_unknown_one(self) -> None:
        assert self.refused(self.http.get("/v1/models/nope"), "model", 404)["code"] == "model_not_found"

    def test_a_reply_echoes_the_alias(self) -> None:
        assert self.chat(model="other-name").json()["model"] == "other-name"


class TestLength(Asking):
    def test_prompt_and_max_tokens_fit_the_context(self) -> None:
        ids = [97] * 500
        assert self.refused(self.complete(ids, max_tokens=13), "prompt")["code"] == "context_length_exceeded"
        assert self.refused(self.complete([97] * 600), "prompt")["code"] == "context_length_exceeded"
        assert self.complete(ids, max_tokens=12).status_code == 200

    def test_without_max_tokens_the_window_ends_it(self) -> None:
        reply = self.complete([97] * 505, ignore_eos=True).json()
        assert (reply["choices"][0]["finish_reason"], reply["usage"]["completion_tokens"]) == ("length", 7)
        reply = self.chat("x" * 480, max_tokens=None, ignore_eos=True).json()
        assert reply["choices"][0]["finish_reason"] == "length"
        assert reply["usage"]["total_tokens"] == CONTEXT

    def test_fields_of_benchmark_tools(self) -> None:
        fields = {"min_tokens": 2, "ignore_eos": True, "top_k": 5, "repetition_penalty": 1.1}
        response = self.chat(**fields)
        assert response.status_code == 200
        assert "x-inferd-ignored-params" not in response.headers


class TestDisconnect(Asking):
    def test_closing_the_socket_ends_the_generation(self, product: Product) -> None:
        body = {"model": "tiny", "prompt": "x", "max_tokens": 500, "ignore_eos": True, "stream": True}
        content = json.dumps(body).encode()
        head = f"POST {COMPLETION_PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        before = product.metric("inferd_generation_tokens_total")
        with socket.create_connection(("127.0.0.1", int(product.http.rpartition(":")[2]))) as connection:
            connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            data = b""
            while data.count(b"data: ") < 3:
                data += connection.recv(65536)
        wait_until(lambda: product.metric("inferd_requests_running") == 0, what="the generation gone")
        assert product.metric("inferd_generation_tokens_total") - before < 400
