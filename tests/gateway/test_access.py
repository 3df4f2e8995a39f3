"""Who may call which route: keys, their scopes, and other origins."""

from __future__ import annotations

from inferd_gateway.routes.access import DiscoveryRoute, KeyRoute, ObserveRoute, PublicRoute


def test_keys(start_gateway, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("# team a\nsecret-2\n\n")
    gateway = start_gateway(api_key=("secret-1",), api_key_file=str(keys))
    body = {"prompt": "x"}
    for header in (None, "Bearer wrong", "Basic secret-1", "Bearer", "secret-1", "Bearer secret", "Bearer secret-11"):
        headers = {"authorization": header} if header else {}
        response = gateway.post("/v1/completions", body, headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
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
            assert response.json()["error"]["code"] == "forbidden"
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
    assert response.status_code == 200
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
