"""Error bodies, as SDKs expect them."""

from __future__ import annotations

import gzip
import json
import time
import zlib

import grpc
import httpx
import pytest
from inferd_gateway.errors import TABLE


def error_of(response: httpx.Response, status: int) -> dict:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    return body["error"]


def raw_post(gateway, content: bytes, content_type: str | None = "application/json") -> httpx.Response:
    headers = {"content-type": content_type} if content_type else {}
    return gateway.client.post("/v1/chat/completions", content=content, headers=headers)


def test_unknown_model(gateway):
    for path, body in {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
        "/v1/completions": {"prompt": "x"},
        "/tokenize": {"prompt": "x"},
    }.items():
        error = error_of(gateway.post(path, {"model": "nope", **body}), 404)
        assert (error["code"], error["param"], error["type"]) == ("model_not_found", "model", "invalid_request_error")
    assert error_of(gateway.get("/v1/models/nope"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"7", b"\xff", b"\xef\xbb\xbf{}", b'{"a":1,"a":2}', b'{"temperature":NaN}',
        b'{"temperature":Infinity}', b'{"temperature":-Infinity}', b'{"user":"\\ud800"}',
        b'{"a":' * 33 + b"1" + b"}" * 33, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"seed":' + b"9" * 1_000_000 + b"}",
    ],
)  # fmt: skip
def test_malformed_bodies(gateway, content):
    assert error_of(raw_post(gateway, content), 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", "application/xml"])
def test_wrong_content_type(gateway, content_type):
    error_of(raw_post(gateway, b"{}", content_type), 415)


def test_no_content_type_is_json(gateway):
    body = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "x"}]}).encode()
    assert raw_post(gateway, body, None).status_code == 200
    error_of(raw_post(gateway, b"model=toy", None), 400)


def test_json_with_a_charset(gateway):
    body = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "é"}]}).encode()
    assert raw_post(gateway, body, "application/json; charset=utf-8").status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ],
)
def test_invalid_messages(gateway, body, param):
    assert error_of(gateway.post("/v1/chat/completions", {"model": "toy", **body}), 400)["param"] == param


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"max_tokens": 2**40}, "max_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"top_logprobs": 0, "logprobs": False}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"priority": 2**31 + 1}, "priority"),
        ({"request_id": "a b"}, "request_id"),
        ({"echo": True}, "echo"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
        ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs.messages"),
        ({"chat_template_kwargs": {"__class__": "x"}}, "chat_template_kwargs.__class__"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"x": {}}}, "chat_template_kwargs.x"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ],
)
def test_invalid_values_name_the_field(gateway, fields, param):
    assert error_of(gateway.chat(**fields), 400)["param"] == param


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"functions": []},
        {"audio": {}},
        {"modalities": ["text", "audio"]},
        {"chat_template": "{{ 1 }}"},
        {"documents": [{"text": "x"}]},
        {"use_beam_search": True},
        {"length_penalty": 2.0},
        {"prompt_embeds": "x"},
        {"web_search_options": {}},
        {"spaces_between_special_tokens": False},
        {"suffix": "x"},
    ],
)
def test_known_but_unsupported_values_name_the_field(gateway, fields):
    assert error_of(gateway.chat(**fields), 400)["param"] == next(iter(fields))


def test_unsupported_values_that_change_nothing_are_accepted(gateway):
    fields = {"use_beam_search": False, "length_penalty": 1.0, "modalities": ["text"], "documents": [], "suffix": None}
    response = gateway.chat(**fields)
    assert response.status_code == 200
    assert "x-inferd-ignored-params" not in response.headers


def test_overflowing_number(gateway):
    error = error_of(raw_post(gateway, b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}'), 400)
    assert error["param"] == "temperature"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/responses", b'{"input":"x","metadata":{"a":[1,-1e999]}}', "metadata.a[1]"),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"x"}],"user":"u","x":1e400}', "x"),
        ("/v1/completions", b'{"prompt":"x","logit_bias":{"1":1e999}}', "logit_bias.1"),
    ],
)
def test_no_number_of_a_body_becomes_infinity(gateway, path, body, param):
    headers = {"content-type": "application/json"}
    error = error_of(gateway.client.post(path, content=body, headers=headers), 400)
    assert error["param"] == param
    assert "too large" in error["message"]


def test_every_bad_key_of_logit_bias_is_named(gateway):
    message = error_of(gateway.chat(logit_bias={"x": 1, "5": 1, "-1": 1, "1e3": 1}), 400)["message"]
    assert all(repr(key) in message for key in ("x", "-1", "1e3"))
    assert "'5'" not in message


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_whole_numbers_may_be_written_as_floats(gateway, daemon, ask):
    assert getattr(gateway, ask)(max_tokens=3.0, seed=5.0, n=1.0, top_k=4e1, stop_token_ids=[9.0]).status_code == 200
    request = daemon.requests[-1]
    assert (request.stop.max_tokens, request.sampling.seed, request.sampling.top_k) == (3, 5, 40)
    assert list(request.stop.stop_token_ids) == [9]
    for bad in (5.5, "5", True):
        assert error_of(getattr(gateway, ask)(max_tokens=bad), 400)["param"] == "max_tokens"


def test_unknown_fields_are_reported(gateway, eventually):
    before = ignored_count(gateway)
    response = gateway.chat(frobnicate=1, stream_options={"include_usage": True, "x": 1}, stream=True)
    assert response.headers["x-inferd-ignored-params"] == "frobnicate, stream_options.x"
    eventually(lambda: ignored_count(gateway) == before + 2)
    assert gateway.chat(**{"a\r\nb: c": 1}).headers["x-inferd-ignored-params"] == "a??b??c"


def ignored_count(gateway) -> float:
    lines = gateway.get("/metrics").text.splitlines()
    found = [line for line in lines if line.startswith('inferd_gateway_ignored_params_total{route="/v1/chat')]
    return float(found[0].split()[-1]) if found else 0.0


def test_unknown_fields_are_refused_when_strict(start_gateway):
    gateway = start_gateway(strict_params=True)
    assert error_of(gateway.chat(frobnicate=1), 400)["param"] == "frobnicate"
    assert gateway.chat().status_code == 200


@pytest.mark.parametrize(
    ("path", "fields", "limit"),
    [
        ("/v1/completions", {"prompt": "a", "max_tokens": 4}, "max_tokens"),
        ("/v1/completions", {"prompt": "a"}, "max_tokens"),
        ("/v1/chat/completions", {"max_completion_tokens": 4}, "max_completion_tokens"),
        ("/v1/responses", {"input": "a", "max_output_tokens": 16}, "max_output_tokens"),
    ],
)
def test_all_fields_of_a_message_have_the_names_of_the_caller(gateway, daemon, make_status, path, fields, limit):
    text = "stop.min_tokens must be at most stop.max_tokens (4), got 9"
    daemon.failures.append(make_status("INVALID_ARGUMENT", text, "INVALID_PARAMETER", "stop.min_tokens"))
    messages = {"messages": [{"role": "user", "content": "a"}]} if "chat" in path else {}
    error = error_of(gateway.post(path, {"model": "toy", "min_tokens": 9, **messages, **fields}), 400)
    assert error["param"] == "min_tokens"
    assert error["message"] == f"min_tokens must be at most {limit} (4), got 9"


def test_routing_errors(gateway):
    error_of(gateway.get("/v1/nothing"), 404)
    response = gateway.get("/v1/chat/completions")
    error_of(response, 405)
    assert response.headers["allow"] == "OPTIONS, POST"
    error_of(gateway.post("/health", {}), 405)
    error_of(gateway.client.options("/v1/nothing"), 404)


def test_every_route_says_which_methods_it_takes(gateway):
    """OPTIONS and 405 agree, and are the description's methods with what is added to all."""
    described = gateway.get("/openapi.json").json()["paths"]
    assert len(described) > 20
    for template, operations in described.items():
        path = template.replace("{name}", "toy")
        methods = {method.upper() for method in operations}
        expected = ", ".join(sorted(methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())))
        for method in ("OPTIONS", "PUT", "DELETE"):
            response = gateway.client.request(method, path)
            assert response.status_code == (200 if method == "OPTIONS" else 405), (method, path)
            assert response.headers["allow"] == expected, (method, path)


def test_bodies_that_are_too_large(gateway):
    large = b'{"user":"' + b"x" * (4 * 2**20) + b'"}'
    error_of(raw_post(gateway, large), 413)

    def pieces():
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    response = gateway.client.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    error_of(response, 413)


COMPLETION = json.dumps({"model": "toy", "prompt": "x" * 1000, "max_tokens": 1}).encode()
PACKED = {
    "gzip": gzip.compress(COMPLETION),
    "x-gzip": gzip.compress(COMPLETION[:20]) + gzip.compress(COMPLETION[20:]),  # two members
    "deflate": zlib.compress(COMPLETION),
    "Deflate": zlib.compress(COMPLETION, wbits=-zlib.MAX_WBITS),  # without the wrapper, as some clients send it
    "identity": COMPLETION,
}


def post_packed(gateway, coding: str, content) -> httpx.Response:
    headers = {"content-type": "application/json", "content-encoding": coding}
    return gateway.client.post("/v1/completions", content=content, headers=headers)


@pytest.mark.parametrize("coding", PACKED)
def test_compressed_bodies(gateway, coding):
    packed = PACKED[coding]
    whole = post_packed(gateway, coding, packed)
    pieces = post_packed(gateway, coding, (bytes([byte]) for byte in packed))
    assert (whole.status_code, pieces.status_code) == (200, 200)
    assert whole.json()["usage"] == pieces.json()["usage"]


@pytest.mark.parametrize(
    "content",
    [b"x", b"", PACKED["gzip"][:-9], PACKED["gzip"] + b"junk", PACKED["gzip"][:30] + b"\0" * 30, PACKED["deflate"]],
    ids=["text", "nothing", "cut", "followed", "broken", "another coding"],
)
def test_a_body_that_is_not_in_its_coding(gateway, content):
    error_of(post_packed(gateway, "gzip", content), 400)


def test_a_small_body_that_unpacks_to_much(gateway):
    """The bound is on what is unpacked, and nothing beyond it ever is."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    bomb = b"".join([*(packer.compress(bytes(2**20)) for _ in range(1024)), packer.flush()])
    assert len(bomb) < 2**20 + 2**16
    started = time.monotonic()
    error_of(post_packed(gateway, "gzip", bomb), 413)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip", "compress"])
def test_other_codings_are_refused(gateway, coding):
    response = post_packed(gateway, coding, b"x")
    error_of(response, 415)
    assert response.headers["accept-encoding"] == "gzip, deflate"


STATUSES = {
    ("INVALID_ARGUMENT", "INVALID_CONSTRAINT"): (400, "invalid_schema", None),
    ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED"): (400, "context_length_exceeded", None),
    ("NOT_FOUND", "MODEL_NOT_FOUND"): (404, "model_not_found", None),
    ("FAILED_PRECONDITION", "TASK_NOT_SUPPORTED"): (400, "unsupported_task", None),
    ("UNIMPLEMENTED", "UNSUPPORTED_FEATURE"): (400, "unsupported_feature", None),
    ("UNIMPLEMENTED", ""): (501, "unsupported_feature", "false"),
    ("ALREADY_EXISTS", "DUPLICATE_REQUEST"): (409, "duplicate_request", "false"),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL"): (429, "server_overloaded", "true"),
    ("RESOURCE_EXHAUSTED", "QUEUE_TIMEOUT"): (429, "queue_timeout", "true"),
    ("RESOURCE_EXHAUSTED", ""): (413, "request_too_large", None),
    ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"): (504, "timeout", "false"),
    ("UNAVAILABLE", "DRAINING"): (503, "draining", "true"),
    ("UNAVAILABLE", "NOT_READY"): (503, "model_loading", "true"),
    ("UNAVAILABLE", "ENGINE_DEAD"): (503, "engine_unavailable", "true"),
    ("ABORTED", "NUMERIC_ERROR"): (500, "generation_failed", "false"),
    ("ABORTED", "ADMIN_ABORT"): (503, "aborted", "false"),
    ("UNAUTHENTICATED", "BAD_TOKEN"): (500, "internal_error", "false"),
    ("PERMISSION_DENIED", "FORBIDDEN"): (403, "forbidden", None),
    ("INTERNAL", "INTERNAL"): (500, "internal_error", "false"),
    ("UNKNOWN", ""): (500, "internal_error", "false"),
    ("DATA_LOSS", ""): (500, "internal_error", "false"),
}


@pytest.mark.parametrize(("status", "reason"), STATUSES)
def test_every_row_of_the_error_table(gateway, daemon, make_status, status, reason):
    retry_s = 2.5 if status in ("UNAVAILABLE", "RESOURCE_EXHAUSTED") and reason else 0.0
    daemon.failures = [make_status(grpc.StatusCode[status], "what happened", reason, retry_s=retry_s)]
    response = gateway.chat()
    http, code, retry = STATUSES[status, reason]
    error = error_of(response, http)
    assert error["code"] == code
    assert response.headers.get("x-should-retry") == retry
    assert response.headers.get("retry-after") == ("3" if retry == "true" else None)
    if http == 500 and code == "internal_error":
        assert "what happened" not in error["message"]
    if code == "model_not_found":
        assert error["param"] == "model"


def test_table_statuses_are_grpc_statuses():
    assert {status for status, _ in TABLE} <= set(grpc.StatusCode.__members__)


def test_field_paths_become_http_names(gateway, daemon, make_status):
    for path, name in {
        "sampling.min_p": "min_p",
        "stop.stop_strings[2]": "stop",
        "stop.stop_token_ids[0]": "stop_token_ids",
        "output.logprobs.top_n": "top_logprobs",
        "prompt.segments.segments[0].text": "messages",
        "cache.salt": "cache_salt",
        "constraint.json_schema": "response_format",
        "stop.max_tokens": "max_completion_tokens",
    }.items():
        daemon.failures = [make_status(grpc.StatusCode.INVALID_ARGUMENT, f"{path} is bad", "INVALID_PARAMETER", path)]
        error = error_of(gateway.chat(max_completion_tokens=3), 400)
        assert (error["param"], error["message"]) == (name, f"{name} is bad")


def test_our_own_bugs_are_opaque(gateway, monkeypatch):
    async def fail(*_):
        raise RuntimeError("a secret at 0x7f00")

    monkeypatch.setattr(gateway.app.state.gateway.directory, "resolve", fail)
    response = gateway.chat()
    error = error_of(response, 500)
    assert "secret" not in error["message"]
    assert (response.headers["x-should-retry"], error["code"]) == ("false", "internal_error")
    assert response.headers["x-request-id"]


def test_no_daemon(start_gateway):
    gateway = start_gateway(backend=("127.0.0.1:1",))
    response = gateway.complete()
    assert error_of(response, 503)["code"] == "model_loading"
    assert response.headers["retry-after"] == "1"
    assert gateway.get("/health").status_code == 503
    assert gateway.get("/v1/models").json()["data"] == []
