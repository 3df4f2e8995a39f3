"""Error bodies, headers, keys, CORS and model names, as SDKs expect them."""

from __future__ import annotations

import json

import grpc
import httpx
import pytest
from inferd_gateway.errors import TABLE
from inferd_gateway.http_protocol import server_options
from inferd_gateway.routes.access import DiscoveryRoute, KeyRoute, ObserveRoute, PublicRoute


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


@pytest.mark.parametrize("content_type", [None, "text/plain", "multipart/form-data; boundary=x", "application/xml"])
def test_wrong_content_type(gateway, content_type):
    error_of(raw_post(gateway, b"{}", content_type), 415)


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
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999": 1}}, "logit_bias"),
        ({"top_logprobs": 2}, "top_logprobs"),
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
            assert response.status_code == (204 if method == "OPTIONS" else 405), (method, path)
            assert response.headers["allow"] == expected, (method, path)


def test_bodies_that_are_too_large(gateway):
    large = b'{"user":"' + b"x" * (4 * 2**20) + b'"}'
    error_of(raw_post(gateway, large), 413)

    def pieces():
        yield from (large[start : start + 65536] for start in range(0, len(large), 65536))

    response = gateway.client.post("/v1/completions", content=pieces(), headers={"content-type": "application/json"})
    error_of(response, 413)


def test_compressed_bodies_are_refused(gateway):
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    error_of(gateway.client.post("/v1/completions", content=b"x", headers=headers), 415)


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


def test_request_ids(gateway):
    assert gateway.get("/health").headers["x-request-id"].startswith("req_")
    assert gateway.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("x" * 129, "a b", "a\tb"):
        assert gateway.get("/health", headers={"x-request-id": bad}).headers["x-request-id"].startswith("req_")
    headers = gateway.chat(temperature=9).headers
    assert headers["x-request-id"]
    assert headers["openai-processing-ms"].isdigit()
    assert headers["openai-version"]


def test_request_id_and_trace_reach_the_daemon(gateway, daemon):
    headers = {"x-request-id": "abc", "traceparent": "00-" + "1" * 32 + "-" + "2" * 16 + "-01"}
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert gateway.post("/v1/chat/completions", body, headers=headers).headers["x-request-id"] == "abc"
    assert daemon.metadata[-1]["x-request-id"] == "abc"
    assert daemon.metadata[-1]["traceparent"] == headers["traceparent"]


def test_head(gateway):
    for path in ("/health", "/v1/models"):
        response = gateway.client.head(path)
        assert (response.status_code, response.content) == (200, b"")


def test_trailing_slash(gateway):
    body = {"messages": [{"role": "user", "content": "x"}]}
    assert gateway.post("/v1/chat/completions/", body).status_code == 200
    assert gateway.get("/v1/models/").json()["object"] == "list"


def test_models(gateway):
    body = gateway.get("/v1/models").json()
    assert body["object"] == "list"
    assert [model["id"] for model in body["data"]] == ["org/toy", "toy"]
    for model in body["data"]:
        assert (model["object"], model["owned_by"], model["created"]) == ("model", "inferd", 1_700_000_000)
        assert gateway.get("/v1/models/" + model["id"]).json() == model
    assert gateway.get("/v1/models/org%2Ftoy").json()["id"] == "org/toy"


def test_reply_names_the_model_as_it_was_asked_for(gateway):
    assert gateway.chat().json()["model"] == "toy"
    assert gateway.post("/v1/completions", {"model": "org/toy", "prompt": "x"}).json()["model"] == "org/toy"
    assert gateway.post("/v1/completions", {"prompt": "x"}).json()["model"] == "org/toy"


def test_served_model_names(start_gateway):
    gateway = start_gateway(served_model_name=("gpt-x", "other"))
    assert [model["id"] for model in gateway.get("/v1/models").json()["data"]] == ["gpt-x", "other"]
    assert gateway.post("/v1/completions", {"model": "other", "prompt": "x"}).json()["model"] == "other"
    assert gateway.complete().status_code == 404


def test_keys(start_gateway, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# team a\nsecret-2\n\n")
    gateway = start_gateway(api_key=("secret-1",), api_key_file=str(keys))
    body = {"prompt": "x"}
    for header in (None, "Bearer wrong", "Basic secret-1", "Bearer", "secret-1", "Bearer secret", "Bearer secret-11"):
        headers = {"authorization": header} if header else {}
        response = gateway.post("/v1/completions", body, headers=headers)
        assert error_of(response, 401)["code"] == "invalid_api_key"
        assert response.headers["www-authenticate"] == "Bearer"
        assert "secret" not in response.text
    for key in ("secret-1", "secret-2"):
        assert gateway.post("/v1/completions", body, headers={"authorization": f"Bearer {key}"}).status_code == 200
    # The key is checked before the body is looked at.
    assert gateway.client.post("/v1/completions", content=b"{").status_code == 401


def test_every_route_has_a_class_and_so_a_scope(start_gateway):
    """A route of no class of routes/access.py, or a new one that needs no key, does not pass."""
    gateway = start_gateway(api_key=("k",))
    named = {
        PublicRoute: {"/health", "/ping", "/ready", "/version", "/openapi.json"},
        ObserveRoute: {"/metrics", "/load"},
        DiscoveryRoute: {"/v1/models", "/v1/models/{name:path}"},
    }
    routes = [route for included in gateway.app.routes for route in included.original_router.routes]
    assert len(routes) >= 21
    for route in routes:
        assert type(route) in (*named, KeyRoute), route.path
        for kind, paths in named.items():
            assert (type(route) is kind) == (route.path in paths), route.path
        path = route.path.replace("{name:path}", "toy")
        for method in route.methods:
            status = gateway.client.request(method, path, json={}).status_code
            assert (status == 401) == (type(route) in (KeyRoute, DiscoveryRoute)), route.path


def test_scopes(start_gateway, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("plain\nobserve:watcher\nadmin:boss\ninfer:both\nobserve:both\n")
    gateway = start_gateway(api_key_file=str(keys))
    expected = {"plain": (200, 200, 403), "watcher": (403, 200, 200), "boss": (403, 403, 200), "both": (200, 200, 200)}
    for key, (infer, discover, observe) in expected.items():
        headers = {"authorization": f"Bearer {key}"}
        response = gateway.post("/v1/completions", {"prompt": "x"}, headers=headers)
        assert response.status_code == infer
        if infer == 403:
            assert error_of(response, 403)["code"] == "forbidden"
            assert response.json()["error"]["type"] == "permission_error"
        assert gateway.get("/v1/models", headers=headers).status_code == discover
        assert gateway.get("/metrics", headers=headers).status_code == observe
    assert gateway.get("/metrics").status_code == 401
    assert gateway.get("/health").status_code == 200


def test_refused_calls_are_logged_and_counted(start_gateway, caplog, eventually):
    gateway = start_gateway(api_key=("k",))
    with caplog.at_level("INFO", "inferd_gateway.access"):
        gateway.post("/v1/completions", {"prompt": "x"}, headers={"authorization": "Bearer wrong"})
        eventually(lambda: 'route="/v1/completions",status="401"' in gateway.get("/metrics").text)
    assert [record.status for record in caplog.records if "/v1/completions" in record.getMessage()] == [401]
    assert not [record for record in caplog.records if "/metrics" in record.getMessage()]


def test_cors(start_gateway):
    gateway = start_gateway(allowed_origins=("https://app.example",), api_key=("k",))
    origin = {"origin": "https://app.example"}
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}
    response = gateway.client.options("/v1/chat/completions", headers={**origin, **asked})
    assert response.status_code == 204
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["access-control-allow-headers"] == asked["access-control-request-headers"]
    assert "access-control-allow-credentials" not in response.headers
    refused = gateway.client.options("/v1/chat/completions", headers={"origin": "https://evil.example", **asked})
    assert "access-control-allow-origin" not in refused.headers
    for key, status in (("k", 200), ("bad", 401)):
        headers = {**origin, "authorization": f"Bearer {key}"}
        stream = gateway.post("/v1/completions", {"prompt": "x", "stream": True}, headers=headers)
        assert stream.status_code == status
        assert stream.headers["access-control-allow-origin"] == "https://app.example"
        assert stream.headers["vary"] == "Origin"


def test_cors_for_all_and_for_none(start_gateway, gateway):
    origin = {"origin": "https://a.example"}
    headers = start_gateway(allowed_origins=("*",)).get("/v1/models", headers=origin).headers
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers
    assert "access-control-allow-origin" not in gateway.get("/v1/models", headers=origin).headers


def test_status_routes(gateway, daemon):
    assert gateway.get("/health").status_code == 200
    assert gateway.get("/ping").status_code == 200
    assert gateway.get("/version").json()["version"]
    assert "inferd_gateway_requests_total" in gateway.get("/metrics").text
    assert "/v1/chat/completions" in gateway.get("/openapi.json").json()["paths"]
    daemon.serving = False
    assert gateway.get("/health").status_code == 503


def test_metric_series_do_not_grow_with_what_callers_send(gateway, eventually):
    def series() -> int:
        return len([line for line in gateway.get("/metrics").text.splitlines() if "gateway_requests_total{" in line])

    for name in ("x", "y"):
        gateway.get(f"/{name}")
        gateway.post("/v1/completions", {"model": name, "prompt": "x"})
        gateway.client.request(f"M{name.upper()}", "/health")
        if name == "x":
            eventually(lambda: 'route="unmatched",status="404"' in gateway.get("/metrics").text)
            before = series()
    assert series() == before


def test_our_own_bugs_are_opaque(gateway, monkeypatch):
    async def fail(*_):
        raise RuntimeError("a secret at 0x7f00")

    monkeypatch.setattr(gateway.app.state.gateway.directory, "resolve", fail)
    response = gateway.chat()
    error = error_of(response, 500)
    assert "secret" not in error["message"]
    assert (response.headers["x-should-retry"], error["code"]) == ("false", "internal_error")
    assert response.headers["x-request-id"]


def test_connections_outlive_idle_pools():
    assert server_options()["timeout_keep_alive"] >= 75


def test_no_daemon(start_gateway):
    gateway = start_gateway(backend=("127.0.0.1:1",))
    response = gateway.complete()
    assert error_of(response, 503)["code"] == "model_loading"
    assert response.headers["retry-after"] == "1"
    assert gateway.get("/health").status_code == 503
    assert gateway.get("/v1/models").json()["data"] == []
