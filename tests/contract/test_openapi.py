"""/openapi.json against the answers of a running product: what it promises is what comes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import jsonschema
import pytest

from inferd.testing.http_fields import CHAT, COMPLETION, FORCED, TOOL
from inferd.testing.parity import events_of

HELLO = [{"role": "user", "content": "hello"}]
ALL_LOGPROBS = {"n": 2, "return_token_ids": True, "prompt_logprobs": 1}
CALL = {"tools": [TOOL], "tool_choice": "required", "max_tokens": 60, "parallel_tool_calls": False}
RESPONSES_TOOL = {"type": "function", "name": "f", "parameters": TOOL["function"]["parameters"]}
MESSAGES_TOOL = {"name": "f", "input_schema": TOOL["function"]["parameters"]}
EMBED = {"model": "tiny-embedder"}
TOKENS = {"model": "tiny", "max_output_tokens": 4}
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT | ALL_LOGPROBS),
    ("/v1/chat/completions", CHAT | FORCED | CALL),
    ("/v1/completions", COMPLETION | ALL_LOGPROBS | {"prompt": ["a", "b"]}),
    ("/v1/completions", COMPLETION | {"echo": True, "stop": "b"}),
    ("/v1/responses", TOKENS | {"input": "hello", "instructions": "be", "text": {"format": {"type": "text"}}}),
    ("/v1/responses", {"model": "tiny", "input": "x", "tools": [RESPONSES_TOOL], "tool_choice": "required"}),
    ("/v1/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 4}),
    ("/v1/messages", {"model": "tiny", "messages": HELLO, "max_tokens": 60, "tools": [MESSAGES_TOOL],
                      "tool_choice": {"type": "any"}}),
    ("/v1/messages/count_tokens", {"model": "tiny", "messages": HELLO}),
    ("/tokenize", {"model": "tiny", "prompt": "x", "return_token_strs": True}),
    ("/tokenize", {"model": "tiny", "messages": HELLO}),
    ("/detokenize", {"model": "tiny", "tokens": [97]}),
    ("/v1/embeddings", EMBED | {"input": ["a", "b"]}),
    ("/v1/embeddings", EMBED | {"input": "a", "encoding_format": "base64"}),
    ("/pooling", EMBED | {"input": "a"}),
    *((path, EMBED | {"text_1": "a", "text_2": ["b", "c"]}) for path in ("/score", "/v1/score")),
    *((path, EMBED | {"query": "a", "documents": ["b", "c"]}) for path in ("/rerank", "/v1/rerank", "/v2/rerank")),
]  # fmt: skip
STREAMS = [
    ("/v1/chat/completions", CHAT | {"n": 2, "return_token_ids": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", CHAT | FORCED | CALL),
    ("/v1/completions", COMPLETION | {"echo": True, "return_token_ids": True}),
]
READS = ("/v1/models", "/v1/models/tiny", "/health", "/ping", "/ready", "/version", "/load")


@pytest.fixture(scope="module")
def document(both_models: httpx.Client) -> dict[str, Any]:
    return dict(both_models.get("/openapi.json").json())


def check(document: dict[str, Any], path: str, method: str, response: httpx.Response, value: Any = None) -> None:
    """One answer, or one event of a stream, against its schema, and its headers."""
    responses = document["paths"][path][method]["responses"]
    described = responses.get(str(response.status_code)) or responses[f"{response.status_code // 100}XX"]
    kind = response.headers["content-type"].partition(";")[0]
    schema = {**described["content"][kind]["schema"], "components": document["components"]}
    jsonschema.validate(response.json() if value is None else value, schema)
    for name, header in described["headers"].items():
        assert name in response.headers or not header["required"]


def test_it_is_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert {"200", "4XX", "5XX"} <= set(operation["responses"]), path
            assert "422" not in operation["responses"]
            for response in operation["responses"].values():
                assert response["content"], (path, method)
                assert all(content["schema"] for content in response["content"].values()), (path, method)


@pytest.mark.parametrize(("path", "body"), GOOD)
def test_answers(document: dict[str, Any], both_models: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = both_models.post(path, json=body)
    assert response.status_code == 200, response.text
    check(document, path, "post", response)


@pytest.mark.parametrize(("path", "body"), STREAMS)
def test_events(document: dict[str, Any], both_models: httpx.Client, path: str, body: dict[str, Any]) -> None:
    response = both_models.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    for event in events_of(response.text):
        check(document, path, "post", response, event)


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_named_events(document: dict[str, Any], both_models: httpx.Client, path: str) -> None:
    body = next(body for other, body in GOOD if other == path)
    response = both_models.post(path, json=body | {"stream": True})
    assert response.status_code == 200, response.text
    for block in response.text.strip().split("\n\n"):
        event = dict(line.split(": ", 1) for line in block.split("\n"))
        check(document, path, "post", response, event)
        assert json.loads(event["data"])["type"] == event["event"]


@pytest.mark.parametrize("path", sorted({path for path, _ in GOOD} | {"/classify"}))
def test_refusals(document: dict[str, Any], both_models: httpx.Client, path: str) -> None:
    """A body that fits no route, a model that nobody serves, and no JSON."""
    for content in ("{}", '{"model": 7}', "x"):
        response = both_models.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400
        check(document, path, "post", response)


@pytest.mark.parametrize("path", READS)
def test_reads(document: dict[str, Any], both_models: httpx.Client, path: str) -> None:
    described = path if path in document["paths"] else "/v1/models/{name}"
    check(document, described, "get", both_models.get(path))
    if described != path:
        missing = both_models.get("/v1/models/nope")
        assert missing.status_code == 404
        check(document, described, "get", missing)
