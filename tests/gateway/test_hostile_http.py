"""Raw bytes at the gateway's socket: malformed HTTP, smuggling, floods, tricks with Host and path."""

from __future__ import annotations

import json
import socket
import threading

import pytest
from inferd_gateway import http_protocol, middleware

BODY = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 1})


def exchange(gateway, data: bytes, *, half_close: bool = False) -> bytes:
    """Everything the gateway answers until it closes."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        try:
            connection.sendall(data)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent
        received = b""
        try:
            while block := connection.recv(65536):
                received += block
        except ConnectionResetError:
            pass
        return received


def request(line: str, *headers: str, body: str = "") -> bytes:
    return "\r\n".join([line, *headers, "connection: close", "", body]).encode("latin-1")


def status_of(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:80]
    return int(answer.split()[1])


@pytest.fixture
def locked(start_gateway):
    return start_gateway(api_key=("k",))


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/v1/models", ["host: x/?"]),
        ("/v1/models", ["host: x/#"]),
        ("/v1/models", ["host: x/v1/../health"]),
        ("/v1/models", ["host: a", "host: b"]),
        ("/v1/models", ["host:"]),
        ("/v1/models", []),
        ("http://x/v1/models", ["host: x"]),
        ("http://x/health/../v1/models", ["host: x"]),
        ("//v1/models", ["host: x"]),
        ("/V1/models", ["host: x"]),
        ("/%76%31/models", ["host: x"]),
        ("/%2fv1/models", ["host: x"]),
        ("/v1/models.", ["host: x"]),
        ("/v1/models;x", ["host: x"]),
        ("/v1/models/", ["host: x"]),
        ("/v1/models?api_key=k", ["host: x"]),
        ("/health/../v1/models", ["host: x"]),
        ("/v1/models", ["host: x", "x-forwarded-prefix: /health", "x-original-url: /health"]),
    ],
)
def test_no_trick_reaches_a_protected_route(locked, target, headers):
    answer = exchange(locked, request(f"GET {target} HTTP/1.1", *headers))
    assert status_of(answer) in (400, 401, 404)
    assert b'"object":"list"' not in answer


JSON = ("host: x", "content-type: application/json")


@pytest.mark.parametrize(
    "data",
    [
        request("POST /v1/completions HTTP/1.1", *JSON, f"content-length: {len(BODY)}", "content-length: 3", body=BODY),
        request("POST /v1/completions HTTP/1.1", *JSON, "content-length: -5", body=BODY),
        request("POST /v1/completions HTTP/1.1", *JSON, "content-length: 99999999999999999999999", body=BODY),
        request(
            "POST /v1/completions HTTP/1.1", *JSON, f"content-length: {len(BODY)}", "transfer-encoding: chunked",
            body="0\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\n\r\n",
        ),
        request("POST /v1/completions HTTP/1.1", *JSON, "transfer-encoding: chunked, identity", body="0\r\n\r\n"),
        request("POST / HTTP/1.1", *JSON, "transfer-encoding: chunked", "transfer-encoding: x", body="0\r\n\r\n"),
        request("POST /v1/completions HTTP/1.1", *JSON, "transfer-encoding: chunked", body="zz\r\n{}\r\n0\r\n\r\n"),
        request("POST /v1/completions HTTP/1.1", *JSON, "transfer-encoding : chunked", body="0\r\n\r\n"),
        b"GET /health HTTP/1.1\nhost: x\n\n\x00",
        b"GET /health HTTP/1.1\r\nhost: x\r\n folded\r\n\x00bad\r\n\r\n",
        b"GET /health HTTP/9.9\r\nhost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
    ],
)  # fmt: skip
def test_malformed_requests_get_one_answer_and_a_closed_connection(gateway, data):
    answer = exchange(gateway, data, half_close=True)
    assert answer.count(b"HTTP/1.1 ") <= 1
    assert status_of(answer) in (400, 408, 413, 431)


def test_floods_of_headers_and_long_urls(gateway):
    many = [f"x-{number}: 1" for number in range(10_000)]
    assert status_of(exchange(gateway, request("GET /health HTTP/1.1", "host: x", *many))) == 431
    answer = exchange(gateway, request("GET /health HTTP/1.1", "host: x", "x: " + "a" * 2**20))
    assert status_of(answer) == 431
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert status_of(exchange(gateway, request(f"GET /{'a' * 2**20} HTTP/1.1", "host: x"))) == 414
    assert gateway.get("/health").status_code == 200


def test_a_hundred_thousand_chunks(gateway):
    padded = BODY[:-1] + " " * 100_000 + "}"
    chunks = "".join(f"1\r\n{char}\r\n" for char in padded) + "0\r\n\r\n"
    answer = exchange(
        gateway, request("POST /v1/completions HTTP/1.1", *JSON, "transfer-encoding: chunked", body=chunks)
    )
    assert status_of(answer) == 200


def test_a_declared_body_that_is_too_large_is_not_awaited(gateway):
    head = request("POST /v1/completions HTTP/1.1", *JSON, f"content-length: {2**30}")
    assert status_of(exchange(gateway, head)) == 413


def test_slow_headers_are_cut_off(gateway, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.1)
    assert status_of(exchange(gateway, b"GET /health HTTP/1.1\r\nhost: x\r\n")) == 408
    assert status_of(exchange(gateway, b"")) == 408


def test_slow_bodies_are_cut_off(gateway, monkeypatch):
    monkeypatch.setattr(middleware, "BODY_IDLE_S", 0.1)
    data = request("POST /v1/completions HTTP/1.1", *JSON, "content-length: 100", body="{")
    assert status_of(exchange(gateway, data)) == 408


def test_expect_continue(gateway):
    data = request(
        "POST /v1/completions HTTP/1.1", *JSON, f"content-length: {len(BODY)}", "expect: 100-continue", body=BODY
    )
    assert b"HTTP/1.1 200" in exchange(gateway, data)


def test_pipelined_requests_are_answered_in_order(gateway):
    one = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\n"
    answer = exchange(gateway, one + request("GET /v1/models HTTP/1.1", "host: x"))
    assert answer.index(b'"version"') < answer.index(b'"object"')


def test_methods_that_nobody_knows(gateway):
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert status_of(exchange(gateway, request(f"{method} /v1/models HTTP/1.1", "host: x"))) == 405
    assert status_of(exchange(gateway, request("FROB /v1/models HTTP/1.1", "host: x"))) == 400


STREAM = json.dumps({"model": "toy", "prompt": "x", "max_tokens": 64, "stream": True})
STREAMED = (
    "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    f"content-length: {len(STREAM)}\r\n\r\n{STREAM}"
).encode()


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        block = connection.recv(65536)
        assert block, received
        received += block
    return received


def read_all(connection: socket.socket) -> bytes:
    received = b""
    while block := connection.recv(65536):
        received += block
    return received


def stream_then(gateway, daemon, then: bytes, reached: threading.Event) -> tuple[bytes, bytes]:
    """The answer to a stream behind which `then` was sent while it ran, and what came after that answer. The stream
    ends once `reached` is set."""
    daemon.gate = threading.Semaphore(1)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.sendall(STREAMED)
        begun = read_until(connection, b"data: ")
        connection.sendall(then)
        assert reached.wait(10)
        daemon.gate.release(1000)
        answer, end, rest = (begun + read_all(connection)).partition(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert end, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    return answer, rest


def noted(monkeypatch, name: str) -> threading.Event:
    """Set when that method of a connection has run."""
    method, happened = getattr(http_protocol.BoundedHttpProtocol, name), threading.Event()

    def note(self, *arguments):
        method(self, *arguments)
        happened.set()

    monkeypatch.setattr(http_protocol.BoundedHttpProtocol, name, note)
    return happened


def test_half_a_pipelined_request_does_not_reach_into_the_answer_before_it(gateway, daemon, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEADER_TIMEOUT_S", 0.2)
    _, rest = stream_then(gateway, daemon, b"GET /version HTTP/1.1\r\nhost: x\r\n", noted(monkeypatch, "_headers_late"))
    assert status_of(rest) == 408


@pytest.mark.parametrize(
    "junk",
    [
        b"nonsense\r\n\r\n",
        request("POST /v1/completions HTTP/1.1", *JSON, "transfer-encoding: chunked", body="zz\r\n{}\r\n0\r\n\r\n"),
        request("GET /version HTTP/1.1", "host: x", "x: " + "a" * 2**15),
    ],
)
def test_junk_behind_a_request_is_answered_after_it(gateway, daemon, monkeypatch, junk):
    _, rest = stream_then(gateway, daemon, junk, noted(monkeypatch, "send_400_response"))
    assert rest.count(b"HTTP/1.1 ") == 1
    assert status_of(rest) in (400, 431)


def test_whole_requests_are_answered_before_the_junk_behind_them(gateway, daemon, monkeypatch):
    data = b"GET /version HTTP/1.1\r\nhost: x\r\n\r\nnonsense\r\n\r\n"
    _, rest = stream_then(gateway, daemon, data, noted(monkeypatch, "send_400_response"))
    assert [int(part.split()[0]) for part in rest.split(b"HTTP/1.1 ")[1:]] == [200, 400]


UPGRADES = [
    ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    ("connection: keep-alive, upgrade", "upgrade: websocket", "sec-websocket-version: 13"),
    ("connection: upgrade", "connection: keep-alive", "upgrade: TLS/1.0"),
]


@pytest.mark.parametrize("upgrade", UPGRADES, ids=["h2c", "websocket", "tls"])
@pytest.mark.parametrize("pieces", ["at once", "apart", "byte by byte"])
def test_an_upgrade_is_ignored(gateway, upgrade, pieces):
    """What the JDK's client and `curl --http2` send over plain HTTP; a second request follows on the connection."""
    head = "\r\n".join(
        ["POST /v1/completions HTTP/1.1", *JSON, *upgrade, f"content-length: {len(BODY)}", "", ""]
    ).encode()
    last = request("GET /version HTTP/1.1", "host: x")
    sent = {"at once": [head + BODY.encode() + last], "apart": [head, BODY.encode(), last]}.get(pieces)
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in sent or [bytes([byte]) for byte in head + BODY.encode() + last]:
            connection.sendall(piece)
        answer = read_all(connection)
    assert [int(part.split()[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200]
    assert b'"text_completion"' in answer


def test_an_upgrade_of_a_chunked_body_and_of_none(gateway):
    chunks = f"{len(BODY):x}\r\n{BODY}\r\n0\r\n\r\n"
    head = ("POST /v1/completions HTTP/1.1", *JSON, "connection: Upgrade", "upgrade: h2c", "transfer-encoding: chunked")
    assert status_of(exchange(gateway, request(head[0], *head[1:], body=chunks))) == 200
    assert (
        status_of(exchange(gateway, request("GET /version HTTP/1.1", "host: x", "connection: Upgrade", "upgrade: h2c")))
        == 200
    )
    assert status_of(exchange(gateway, request("CONNECT x:443 HTTP/1.1", "host: x:443"))) == 501


def test_http_1_0_gets_no_chunks(gateway):
    """A stream ends where the connection does; the rest has a length."""
    for body, wants_length in ((STREAM, False), (BODY, True)):
        data = request("POST /v1/completions HTTP/1.0", JSON[1], f"content-length: {len(body)}", body=body)
        head, _, received = exchange(gateway, data).partition(b"\r\n\r\n")
        assert status_of(head) == 200
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        assert (b"content-length" in head.lower()) is wants_length
        assert received.startswith(b"{" if wants_length else b"data: {")
        assert received.endswith(b"}" if wants_length else b"data: [DONE]\n\n")


def test_http_1_0_gets_no_interim_answer(gateway):
    data = request(
        "POST /v1/completions HTTP/1.0", JSON[1], f"content-length: {len(BODY)}", "expect: 100-continue", body=BODY
    )
    assert status_of(exchange(gateway, data)) == 200
