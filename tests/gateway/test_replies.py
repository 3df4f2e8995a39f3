"""What comes back: chat and completion bodies, log probabilities, echo, token ids; and what reaches the daemon."""

from __future__ import annotations

import json

import pytest
from inferd_gateway.replies import Head, TextChunks

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb


def events(response) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def test_chat_reply(gateway, daemon):
    reply = gateway.chat().json()
    choice = reply["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": daemon.reply, "refusal": None}
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert reply["object"] == "chat.completion"
    assert reply["id"].startswith("chatcmpl-")
    assert type(reply["created"]) is int
    assert isinstance(reply["system_fingerprint"], str)
    usage = reply["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == len(daemon.reply.encode()) + 1
    # The template's tokens count.
    assert usage["prompt_tokens"] == len("user\nhi\nassistant\n") + 3 + len("\n") - 1


def test_whole_and_streamed_usage_and_counts_agree(gateway):
    whole = gateway.chat(n=2).json()["usage"]
    streamed = events(gateway.chat(n=2, stream=True, stream_options={"include_usage": True}))[-1]["usage"]
    assert whole == streamed


def test_fields_that_are_accepted_and_change_nothing(gateway):
    fields = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "parallel_tool_calls": True, "reasoning_effort": "low",
        "service_tier": "auto", "prediction": {"type": "content", "content": "x"}, "ignore_eos": False, "top_k": 5,
        "repetition_penalty": 1.1, "min_tokens": 0, "stop": None, "tool_choice": "none",
    }  # fmt: skip
    response = gateway.chat(**fields)
    assert response.status_code == 200
    assert "x-inferd-ignored-params" not in response.headers


def test_sampling_fields_reach_the_daemon(gateway, daemon):
    gateway.chat(
        temperature=0, top_p=0.5, top_k=-1, min_p=0.25, presence_penalty=1, frequency_penalty=-1, seed=-3,
        repetition_penalty=1.5, logit_bias={"7": -100}, allowed_token_ids=[1, 2], bad_words=["no"],
        stop="x", stop_token_ids=[9], min_tokens=2, ignore_eos=True, include_stop_str_in_output=True, max_tokens=5,
        max_completion_tokens=6, n=2, skip_special_tokens=False, priority=4, cache_salt="s", session_id="c",
        truncate_prompt_tokens=-1, return_token_ids=True, request_id="mine",
    )  # fmt: skip
    request = daemon.requests[-1]
    assert request.sampling == pb.SamplingParams(
        temperature=0, top_p=0.5, top_k=0, min_p=0.25, presence_penalty=1, frequency_penalty=-1, seed=2**64 - 3,
        repetition_penalty=1.5, logit_bias={7: -100.0}, allowed_token_ids=[1, 2], bad_words=["no"],
    )  # fmt: skip
    assert request.stop == pb.StopConditions(
        max_tokens=6,
        min_tokens=2,
        stop_strings=["x"],
        stop_token_ids=[9],
        ignore_eos=True,
        include_stop=True,
        clamp=True,
    )
    assert request.output == pb.OutputOptions(
        text=True, token_ids=True, skip_special_tokens=False, prompt_token_ids=True
    )
    assert (request.model, request.num_choices, request.priority) == ("org/toy", 2, -4)
    assert request.cache == pb.CacheOptions(salt="s", session_id="c")
    assert request.truncation == common_pb2.TRUNCATION_KEEP_END
    assert request.request_id == "chatcmpl-mine"
    assert request.stream.mode == pb.STREAM_MODE_FINAL


def test_unset_fields_stay_unset(gateway, daemon):
    gateway.chat()
    request = daemon.requests[-1]
    assert request.sampling == pb.SamplingParams()
    assert request.stop == pb.StopConditions()
    assert not request.HasField("num_choices")
    assert not request.HasField("cache")
    assert not request.HasField("constraint")
    gateway.post("/v1/completions", {"prompt": "x"})
    assert daemon.requests[-1].stop.max_tokens == 16


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, pb.Constraint(json_object={})),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            pb.Constraint(json_schema='{"type": "object"}', lenient=True),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}},
            pb.Constraint(json_schema="{}"),
        ),
        (
            {"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}},
            pb.Constraint(structural_tag='{"type": "structural_tag", "format": {"type": "any_text"}}'),
        ),
        ({"structured_outputs": {"json": {"type": "object"}}}, pb.Constraint(json_schema='{"type": "object"}')),
        ({"structured_outputs": {"regex": "a+"}}, pb.Constraint(regex="a+")),
        ({"structured_outputs": {"grammar": "root ::= x"}}, pb.Constraint(ebnf="root ::= x")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, pb.Constraint(choices={"values": ["a", "b"]})),
        ({"structured_outputs": {"json_object": True}}, pb.Constraint(json_object={})),
    ],
)
def test_constraints_reach_the_daemon(gateway, daemon, fields, constraint):
    assert gateway.chat(**fields).status_code == 200
    request = daemon.requests[-1]
    assert (request.constraint if request.HasField("constraint") else None) == constraint


def test_chat_logprobs(gateway, daemon):
    content = gateway.chat(logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]
    assert set(content) == {"content", "refusal"}
    assert content["refusal"] is None
    rows = content["content"]
    assert all(set(row) == {"token", "logprob", "bytes", "top_logprobs"} for row in rows)
    assert all(set(top) == {"token", "logprob", "bytes"} for row in rows for top in row["top_logprobs"])
    assert all(len(row["top_logprobs"]) == 2 for row in rows)
    assert bytes(b for row in rows[:-1] for b in row["bytes"]).decode() == daemon.reply
    streamed = events(gateway.chat(logprobs=True, top_logprobs=2, stream=True))
    parts = [choice["logprobs"] for event in streamed for choice in event["choices"] if choice["logprobs"]]
    assert [row for part in parts for row in part["content"]] == rows
    plain = gateway.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert all(row["top_logprobs"] == [] for row in plain)


def test_logprobs_are_finite(gateway):
    text = gateway.chat(logprobs=True, top_logprobs=12, max_tokens=1).text
    assert "-9999.0" in text
    assert "Infinity" not in text
    assert "NaN" not in text


def test_tokens_as_ids(gateway):
    rows = gateway.chat(logprobs=True, return_tokens_as_token_ids=True).json()["choices"][0]["logprobs"]["content"]
    assert rows[0]["token"] == f"token_id:{ord('H')}"


def test_completion_reply(gateway, daemon):
    reply = gateway.complete().json()
    assert reply["object"] == "text_completion"
    assert reply["choices"][0]["text"] == daemon.reply
    assert reply["choices"][0]["logprobs"] is None


def test_completion_logprobs(gateway):
    found = gateway.complete(logprobs=3).json()["choices"][0]["logprobs"]
    lengths = {len(found[name]) for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert len(lengths) == 1
    assert all(len(top) in (3, 4) for top in found["top_logprobs"])
    assert found["text_offset"] == sorted(found["text_offset"])
    assert all(
        top[token] == value
        for token, value, top in zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    )
    chosen = gateway.complete(logprobs=0).json()["choices"][0]["logprobs"]
    assert [list(top) for top in chosen["top_logprobs"]] == [[token] for token in chosen["tokens"]]


def test_completion_logprobs_streamed(gateway):
    whole = gateway.complete(logprobs=2, echo=True).json()["choices"][0]
    parts = [event["choices"][0]["logprobs"] for event in events(gateway.complete(logprobs=2, echo=True, stream=True))]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts if part for value in part[name]] == whole["logprobs"][name]


def test_text_offsets_are_in_characters(gateway, daemon):
    found = gateway.complete("é", echo=True, logprobs=1).json()["choices"][0]
    text, offsets = found["text"], found["logprobs"]["text_offset"]
    assert offsets[0] == 0
    assert text == "é" + daemon.reply
    tokens = found["logprobs"]["tokens"]
    ascii_only = [(text[offset], token) for offset, token in zip(offsets, tokens, strict=True) if len(token) == 1]
    assert all(char == token for char, token in ascii_only)


def test_echo(gateway, daemon):
    found = gateway.complete("abc", echo=True, logprobs=1).json()["choices"][0]
    assert found["text"] == "abc" + daemon.reply
    assert found["logprobs"]["token_logprobs"][0] is None
    assert found["logprobs"]["top_logprobs"][0] is None
    assert found["logprobs"]["tokens"][:3] == ["a", "b", "c"]
    assert found["logprobs"]["text_offset"][0] == 0
    ids = gateway.complete([97, 98, 99], echo=True, logprobs=1).json()["choices"][0]
    assert ids["text"] == found["text"]
    assert ids["logprobs"] == found["logprobs"]
    streamed = events(gateway.complete("abc", echo=True, stream=True))
    assert "".join(event["choices"][0]["text"] for event in streamed) == found["text"]


def test_echo_scores_a_prompt(gateway, daemon):
    found = gateway.complete("abc", echo=True, logprobs=1, max_tokens=0).json()["choices"][0]
    assert found["text"] == "abc"
    assert found["logprobs"]["token_logprobs"] == [None, -0.25, -0.375]
    assert daemon.requests[-1].stop.max_tokens == 0
    assert gateway.complete("abc", max_tokens=0).status_code == 400


def test_prompt_logprobs(gateway):
    found = gateway.complete("abc", prompt_logprobs=1).json()["choices"][0]["prompt_logprobs"]
    assert found[0] is None
    assert found[1][str(ord("b"))] == {"logprob": -0.25, "rank": 1, "decoded_token": "b"}
    assert len(found) == 3
    assert len(gateway.chat(prompt_logprobs=1).json()["prompt_logprobs"]) > 3


def test_prompt_forms(gateway, daemon):
    for prompt, count in {"ab": 1, (97, 98): 1, ("ab", "c"): 2, ((97,), (98, 99)): 2}.items():
        body = json.loads(json.dumps(prompt))
        assert len(gateway.complete(body).json()["choices"]) == count
    replies = gateway.complete(["x", "yy", "z"], n=2, return_token_ids=True).json()["choices"]
    assert [choice["index"] for choice in replies] == list(range(6))
    assert [len(choice["prompt_token_ids"]) for choice in replies] == [1, 1, 2, 2, 1, 1]
    assert len({request.request_id for request in daemon.requests[-3:]}) == 3


def test_many_prompts_keep_their_order(gateway):
    prompts = ["x" * (1 + number % 7) for number in range(40)]
    choices = gateway.complete(prompts, return_token_ids=True, max_tokens=1).json()["choices"]
    assert [len(choice["prompt_token_ids"]) for choice in choices] == [len(prompt) for prompt in prompts]


def test_one_bad_prompt_fails_the_call(gateway):
    response = gateway.complete([[97], [299], [300]] * 6)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert gateway.complete([[97], [300]], stream=True).status_code == 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": ["a", 1]}, "prompt[0]"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["x"] * 65}, "prompt"),
        ({"prompt": "x" * 5000}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 1, "n": 2}, "best_of"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ],
)
def test_invalid_completions(gateway, fields, param):
    response = gateway.complete(**{"prompt": "x", **fields})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_a_prompt_that_is_too_long_has_its_own_code(gateway):
    assert gateway.complete("x" * 5000).json()["error"]["code"] == "context_length_exceeded"
    assert gateway.complete(max_tokens=5000).json()["error"]["code"] == "context_length_exceeded"


def test_truncated_prompts(gateway, daemon):
    gateway.complete("abcdef", truncate_prompt_tokens=2)
    assert list(daemon.requests[-1].prompt.token_ids.ids) == [101, 102]
    gateway.complete("abcdef", truncate_prompt_tokens=2, truncation_side="right")
    assert list(daemon.requests[-1].prompt.token_ids.ids) == [97, 98]


@pytest.mark.parametrize(
    ("reason", "word"),
    [
        (pb.FINISH_REASON_EOS, "stop"),
        (pb.FINISH_REASON_STOP_TOKEN, "stop"),
        (pb.FINISH_REASON_MAX_TOKENS, "length"),
        (pb.FINISH_REASON_CONTEXT_FULL, "length"),
        (pb.FINISH_REASON_TIME_LIMIT, "length"),
    ],
)
def test_finish_reasons(gateway, daemon, reason, word):
    daemon.abort_reason = reason
    assert gateway.chat().json()["choices"][0]["finish_reason"] == word
    assert events(gateway.complete(stream=True))[-1]["choices"][0]["finish_reason"] == word


def test_stop_reason(gateway):
    assert gateway.complete(stop=["wör"]).json()["choices"][0]["stop_reason"] == "wör"
    choice = gateway.complete(stop_token_ids=[ord(",")]).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"], choice["text"]) == ("stop", ord(","), "Hello")


def test_token_ids(gateway, daemon):
    reply = gateway.chat(return_token_ids=True).json()
    assert bytes(reply["choices"][0]["token_ids"][:-1]).decode() == daemon.reply
    assert reply["prompt_token_ids"][0] == 256
    streamed = events(gateway.chat(return_token_ids=True, stream=True))
    assert streamed[0]["prompt_token_ids"] == reply["prompt_token_ids"]
    ids = [i for event in streamed for choice in event["choices"] for i in choice.get("token_ids", [])]
    assert ids == reply["choices"][0]["token_ids"]


def test_tokenize(gateway):
    body = gateway.post("/tokenize", {"model": "toy", "prompt": "ab", "return_token_strs": True}).json()
    assert body == {"count": 2, "max_model_len": 4096, "tokens": [97, 98], "token_strs": ["<0x61>", "<0x62>"]}
    assert gateway.post("/tokenize", {"prompt": "ab", "add_special_tokens": True}).json()["tokens"][0] == 258
    chat = gateway.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]}).json()
    assert chat["tokens"] == gateway.chat(return_token_ids=True).json()["prompt_token_ids"]
    assert chat["token_strs"] is None
    assert gateway.post("/tokenize", {}).status_code == 400
    assert gateway.post("/detokenize", {"tokens": [97, 98]}).json() == {"prompt": "ab"}
    error = gateway.post("/detokenize", {"tokens": [999]}).json()["error"]
    assert error["param"] == "tokens"


@pytest.mark.parametrize("text", ["", "plain", 'quo"te \\ \n', "\0", "\u2028 é 🙂", '"\\u0000"'])
def test_a_chunk_with_a_text_put_in_is_the_chunk_encoded_whole(text):
    head = Head("id\0", "text_completion", "model\0", "fp")

    def rest(index: int, text: str) -> dict:
        return {"choices": [{"index": index, "text": text, "logprobs": None}], "usage": None}

    chunks = TextChunks(head, rest)
    for index in (0, 3, 0):
        assert chunks.event(index, text) == head.chunk(rest(index, text))
