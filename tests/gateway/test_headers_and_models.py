"""Request ids and headers, the names of models, and the routes that say how the gateway is."""

from __future__ import annotations

from inferd_gateway.http_protocol import server_options


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


def test_the_daemon_hears_whose_key_it_was_but_not_the_key(start_gateway, daemon):
    gateway = start_gateway(api_key=("first-secret", "second-secret"))
    tenants = []
    for headers in (
        {"authorization": "Bearer first-secret"},
        {"x-api-key": "first-secret"},
        {"authorization": "Bearer second-secret"},
    ):
        assert gateway.post("/v1/completions", {"prompt": "x"}, headers=headers).status_code == 200
        tenants.append(daemon.metadata[-1]["x-inferd-tenant"])
    assert tenants[0] == tenants[1] != tenants[2]
    assert all(len(tenant) == 32 and "secret" not in tenant for tenant in tenants)


def test_without_keys_the_daemon_hears_of_no_tenant(gateway, daemon):
    headers = {"authorization": "Bearer anything", "x-inferd-tenant": "me"}
    assert gateway.post("/v1/completions", {"prompt": "x"}, headers=headers).status_code == 200
    assert "x-inferd-tenant" not in daemon.metadata[-1]


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


def test_connections_outlive_idle_pools():
    assert server_options()["timeout_keep_alive"] >= 75
