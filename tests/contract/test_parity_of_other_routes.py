"""The routes that are told in terms of another: Responses and Messages as chats, vectors and scores as Embed and Score.

Every field of their schemas is here with a value and what it means over gRPC; a new one fails until it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import httpx
import pytest

from inferd.testing.http_fields import CHATS, TOOL, build_call
from inferd.testing.http_meanings import SCHEMA
from inferd.testing.parity import Entrances, Outcome
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc

USER = {"role": "user", "content": "the cat sat on the mat"}
SYSTEM = {"role": "system", "content": "be kind"}
CHAT = {"model": "tiny", "messages": [USER], "max_completion_tokens": 6, "temperature": 0}
Fields = Mapping[str, Any]
# field -> (value, the fields of a chat that mean the same)
RESPONSES: Mapping[str, tuple[Any, Fields]] = {
    "model": ("other-name", {"model": "other-name"}),
    "input": ([{"role": "user", "content": [{"type": "input_text", "text": "go"}]}],
              {"messages": [{"role": "user", "content": "go"}]}),
    "instructions": ("be kind", {"messages": [SYSTEM, USER]}),
    "max_output_tokens": (3, {"max_completion_tokens": 3}),
    "temperature": (2, {"temperature": 2}),
    "top_p": (0.1, {"top_p": 0.1}),
    "stream": (False, {}),
    "text": ({"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}},
             {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}}),
    "reasoning": ({"effort": "low"}, {"reasoning_effort": "low"}),
    "tools": ([{"type": "function", **TOOL["function"]}], {}),
    "tool_choice": ("none", {}),
    "parallel_tool_calls": (True, {}),
    "truncation": ("auto", {"truncate_prompt_tokens": -1}),
    "top_k": (1, {"top_k": 1}),
    "min_p": (0.9, {"min_p": 0.9}),
    "seed": (-3, {"seed": -3}),
    "repetition_penalty": (10, {"repetition_penalty": 10}),
    "presence_penalty": (2, {"presence_penalty": 2}),
    "frequency_penalty": (2, {"frequency_penalty": 2}),
    "stop": (["a", "\x03"], {"stop": ["a", "\x03"]}),
    "ignore_eos": (True, {"ignore_eos": True}),
    "min_tokens": (4, {"min_tokens": 4}),
    "priority": (3, {"priority": 3}),
    "cache_salt": ("salt", {"cache_salt": "salt"}),
    "chat_template_kwargs": ({"tone": "kind"}, {"chat_template_kwargs": {"tone": "kind"}}),
    **{name: (value, {}) for name, value in {
        "include": ["reasoning.encrypted_content"], "metadata": {"k": "v"}, "store": False, "user": "u",
        "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k", "prompt_cache_retention": "24h",
        "max_tool_calls": 3, "stream_options": {}, "previous_response_id": None, "conversation": None, "prompt": None,
        "background": False, "top_logprobs": 0,
    }.items()},
}  # fmt: skip
MESSAGES: Mapping[str, tuple[Any, Fields]] = {
    "model": ("other-name", {"model": "other-name"}),
    "messages": ([USER, {"role": "assistant", "content": "on"}],
                 {"messages": [USER, {"role": "assistant", "content": "on"}], "continue_final_message": True}),
    "system": ([{"type": "text", "text": "be kind"}], {"messages": [SYSTEM, USER]}),
    "max_tokens": (3, {"max_completion_tokens": 3}),
    "stop_sequences": (["a", "\x03"], {"stop": ["a", "\x03"]}),
    "stream": (False, {}),
    "temperature": (0, {"temperature": 0}),
    "top_p": (0.0001, {"top_p": 0.0001}),
    "top_k": (1, {"top_k": 1}),
    "tools": ([{"name": "f", "input_schema": SCHEMA}], {}),
    "tool_choice": ({"type": "none"}, {}),
    "thinking": ({"type": "disabled"}, {}),
    "output_config": ({"format": {"type": "json_schema", "schema": SCHEMA}},
                      {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA, "strict": True}}}),
    "metadata": ({"user_id": "u"}, {}),
    "service_tier": ("auto", {}),
}  # fmt: skip
WITH_TOOLS = {"tools": {"tool_choice": "none"}, "tool_choice": {}}


def schema_of(client: httpx.Client, path: str) -> set[str]:
    document = client.get("/openapi.json").json()
    schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return set(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])


def over_grpc(entrances: Entrances, fields: Fields) -> tuple[str, int, int, str | None]:
    call = build_call({**CHAT, **fields}, CHATS, entrances)
    outcome = entrances.generate(call.request, call.names)
    assert isinstance(outcome, Outcome), outcome
    (choice,) = outcome.choices
    return choice.text, outcome.usage[0], outcome.usage[2], choice.finish


def as_response(body: Mapping[str, Any]) -> tuple[str, int, int, str]:
    text = "".join(part["text"] for item in body["output"] for part in item["content"])
    finish = {"completed": "stop", "incomplete": "length"}[body["status"]]
    return text, body["usage"]["input_tokens"], body["usage"]["output_tokens"], finish


def as_message(body: Mapping[str, Any]) -> tuple[str, int, int, str]:
    text, usage = "".join(block["text"] for block in body["content"]), body["usage"]
    finish = "length" if body["stop_reason"] == "max_tokens" else "stop"
    return text, usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"], finish


@pytest.mark.parametrize("name", RESPONSES)
def test_responses(entrances: Entrances, name: str) -> None:
    value, fields = RESPONSES[name]
    body = {"model": "tiny", "input": USER["content"], "max_output_tokens": 6, "temperature": 0, name: value}
    if name == "tools":
        body["tool_choice"] = "none"
    response = entrances.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    if name in ("temperature", "seed"):  # without both the draw is nobody's
        body |= {"temperature": 2, "seed": 9, name: value}
        response = entrances.post("/v1/responses", body)
        fields = {"temperature": 2, "seed": 9, **fields}
    assert as_response(response.json()) == over_grpc(entrances, fields)


@pytest.mark.parametrize("name", MESSAGES)
def test_messages(entrances: Entrances, name: str) -> None:
    value, fields = MESSAGES[name]
    body = {"model": "tiny", "messages": [USER], "max_tokens": 6, "temperature": 0, name: value}
    if name == "tools":
        body["tool_choice"] = {"type": "none"}
    response = entrances.post("/v1/messages", body)
    assert response.status_code == 200, response.text
    assert as_message(response.json()) == over_grpc(entrances, fields)


def test_every_field_of_these_has_a_case(entrances: Entrances, both_models: httpx.Client) -> None:
    assert schema_of(entrances.http, "/v1/responses") == set(RESPONSES)
    assert schema_of(entrances.http, "/v1/messages") == set(MESSAGES)
    for path, fields in EMBEDDER_FIELDS.items():
        assert schema_of(both_models, path) == {*fields, *READ_ONLY, *NOT_HERE.get(path, ())}, path


EmbedChange = Callable[[Any], None]


def truncated(limit: int, side: int) -> EmbedChange:
    def change(request: Any) -> None:
        request.truncation = side
        request.max_tokens = limit

    return change


def no_specials(request: inference_pb2.EmbedRequest) -> None:
    for prompt in request.inputs:
        prompt.add_special_tokens = False


START, END = common_pb2.TRUNCATION_KEEP_START, common_pb2.TRUNCATION_KEEP_END
LONG = "the cat sat on the mat and the dog ran over the moon"
# field -> (value, the change of the request); what only shapes the reply has none
EMBED_FIELDS: Mapping[str, tuple[Any, EmbedChange | None]] = {
    "input": (LONG, None),
    "truncate_prompt_tokens": (5, truncated(5, START)),
    "truncation_side": ("right", None),
    "add_special_tokens": (False, no_specials),
    "use_activation": (False, lambda request: setattr(request, "normalize", False)),
    "dimensions": (8, lambda request: setattr(request, "dimensions", 8)),
    "priority": (4, lambda request: setattr(request, "priority", -4)),
    "encoding_format": ("float", None),
    "embed_dtype": ("float32", None),
    "endianness": ("native", None),
}
SCORE_FIELDS: Mapping[str, tuple[Any, EmbedChange | None]] = {
    "truncate_prompt_tokens": (5, truncated(5, START)),
    "truncation_side": ("left", None),
    "priority": (4, lambda request: setattr(request, "priority", -4)),
}
READ_ONLY = {"model", "request_id", "user", "padding"}  # tested by name below, or ignored
EMBEDDER_FIELDS: Mapping[str, Mapping[str, tuple[Any, EmbedChange | None]]] = {
    "/v1/embeddings": EMBED_FIELDS,
    "/pooling": {name: case for name, case in EMBED_FIELDS.items() if name != "dimensions"},
    "/score": SCORE_FIELDS,
    "/rerank": SCORE_FIELDS,
}
SIDES = ("text_1", "text_2", "queries", "documents", "items", "data_1", "data_2")
NOT_HERE: Mapping[str, tuple[str, ...]] = {
    "/pooling": ("task", "dimensions"),
    "/score": (*SIDES, "use_activation", "max_tokens_per_query", "max_tokens_per_doc"),
    "/rerank": ("query", "documents", "top_n", "return_documents", "use_activation", "max_tokens_per_query",
                "max_tokens_per_doc"),
}  # fmt: skip
CASES = [(path, name) for path, fields in EMBEDDER_FIELDS.items() for name in fields]


@pytest.fixture(scope="module")
def embedder(embedder_address: str) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    with grpc.insecure_channel(embedder_address) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.mark.parametrize(("path", "name"), CASES)
def test_vectors_and_scores(both_models: httpx.Client, embedder: Any, path: str, name: str) -> None:
    value, change = EMBEDDER_FIELDS[path][name]
    texts: dict[str, Any] = {
        "/score": {"text_1": LONG, "text_2": ["a dog", "a cat"]},
        "/rerank": {"query": LONG, "documents": ["a dog", "a cat"]},
    }.get(path, {"input": LONG})
    body = {"model": "tiny-embedder", **texts, "request_id": "mine", "user": "u", name: value}
    response = both_models.post(path, json=body)
    assert response.status_code == 200, response.text
    reply = response.json()
    if path in ("/score", "/rerank"):
        request: Any = inference_pb2.ScoreRequest()
        request.rerank.query.text = LONG
        for text in ("a dog", "a cat"):
            request.rerank.documents.add(text=text)
    else:
        request = inference_pb2.EmbedRequest(inputs=[{"text": LONG}])
    if change is not None:
        change(request)
    answer = embedder.Score(request) if path in ("/score", "/rerank") else embedder.Embed(request)
    assert reply["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert numbers_of(path, reply) == pytest.approx(numbers_in(answer), abs=1e-6)


def numbers_of(path: str, reply: Mapping[str, Any]) -> list[float]:
    if path == "/rerank":
        ranked = sorted(reply["results"], key=lambda result: int(result["index"]))
        return [result["relevance_score"] for result in ranked]
    if path == "/score":
        return [item["score"] for item in reply["data"]]
    field = "embedding" if path == "/v1/embeddings" else "data"
    return [value for item in reply["data"] for value in item[field]]


def numbers_in(answer: Any) -> list[float]:
    if isinstance(answer, inference_pb2.ScoreResponse):
        return list(answer.scores)
    view = memoryview(answer.vectors).cast("f")
    return list(view)
