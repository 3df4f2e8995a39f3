"""Daemons that fail, restart, drain or take too long."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from inferd_gateway.backend import Backend, CallContext
from inferd_gateway.errors import http_field

from inferd.v1 import inference_pb2 as pb


def test_unavailable_is_retried_before_the_first_token(gateway, daemon, make_status):
    down = make_status(grpc.StatusCode.UNAVAILABLE, "gone", "ENGINE_DEAD")
    daemon.failures = [down] * 3
    assert gateway.chat(stream=True).status_code == 200
    assert len(daemon.requests) == 4
    daemon.failures = [down] * 4
    response = gateway.chat()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_unavailable")


@pytest.mark.parametrize("request_id", [None, "mine", "x" * 96])
def test_a_retry_is_not_the_request_that_a_daemon_may_still_run(gateway, daemon, make_status, request_id):
    """A daemon that has not noticed a dead connection would refuse the same id."""
    down = make_status(grpc.StatusCode.UNAVAILABLE, "gone", "ENGINE_DEAD")
    daemon.failures = [down] * 3
    assert gateway.chat(request_id=request_id).status_code == 200
    ids = [request.request_id for request in daemon.requests]
    assert len(set(ids)) == 4
    assert all(len(one) <= 128 for one in ids)


def test_a_drain_is_not_retried_but_said(gateway, daemon, make_status):
    daemon.failures = [make_status(grpc.StatusCode.UNAVAILABLE, "draining", "DRAINING", retry_s=5)]
    response = gateway.chat()
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert len(daemon.requests) == 1


def test_other_errors_are_not_retried(gateway, daemon, make_status):
    daemon.failures = [make_status(grpc.StatusCode.INTERNAL, "bug", "INTERNAL")]
    assert gateway.chat().status_code == 500
    assert len(daemon.requests) == 1


def test_a_duplicate_that_the_caller_made_is_said(gateway, daemon, make_status):
    daemon.failures = [make_status(grpc.StatusCode.ALREADY_EXISTS, "it is running", "DUPLICATE_REQUEST")]
    assert gateway.chat(request_id="mine").status_code == 409


@pytest.mark.parametrize("message", [pb.EmbedRequest, pb.ScoreRequest])
def test_batches_are_retried_under_other_ids_too(daemon, message):
    class Down(grpc.aio.AioRpcError):
        def __init__(self) -> None:
            super().__init__(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata())

    seen: list[str] = []

    async def method(request, **_):
        seen.append(request.request_id)
        if len(seen) < 4:
            raise Down
        return request

    async def run() -> None:
        backend = Backend("127.0.0.1:1", None)
        await backend.unary(method, message(request_id="one"), CallContext("x", time.monotonic() + 30))
        await backend.close()

    asyncio.run(run())
    assert seen == ["one", "one.r1", "one.r2", "one.r3"]


SLOW_FOR_SLOW = (
    "{% if messages[0].content == 'slow' %}{% for a in range(9999) %}{% for b in range(9999) %}"
    "{% for c in range(9999) %}{% endfor %}{% endfor %}{% endfor %}{% endif %}<|im_start|>{{ messages[0].content }}"
)


def test_a_deadline_that_passes_in_a_template(start_gateway, new_daemon):
    """Its own request is told so; others, which wait for a process, too."""
    running = new_daemon()
    running.servicer.template = SLOW_FOR_SLOW
    gateway = start_gateway(backend=(running.address,))
    started = time.monotonic()
    short = {"x-request-timeout-ms": "300"}
    body = {"model": "toy", "messages": [{"role": "user", "content": "slow"}]}
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(gateway.post, "/v1/chat/completions", body, headers=short) for _ in range(4)]
        found = [future.result() for future in asked]
    assert [(one.status_code, one.json()["error"]["code"]) for one in found] == [(408, "timeout")] * 4
    assert time.monotonic() - started < 1.9
    assert gateway.chat("quick").status_code == 200


def test_deadlines_are_forwarded(gateway, daemon):
    gateway.post("/v1/completions", {"prompt": "x"}, headers={"x-request-timeout-ms": "5000"})
    assert 3 < daemon.deadlines[-1] < 5
    gateway.complete()
    assert 500 < daemon.deadlines[-1] < 600


def test_a_deadline_that_passes(gateway, daemon, start_gateway):
    daemon.gate = threading.Semaphore(0)
    started = time.monotonic()
    response = gateway.post("/v1/completions", {"prompt": "x"}, headers={"x-request-timeout-ms": "200"})
    assert (response.status_code, response.json()["error"]["code"]) == (408, "timeout")
    assert response.headers["x-should-retry"] == "false"
    assert time.monotonic() - started < 2
    assert daemon.ended.wait(5)
    assert start_gateway(request_timeout=0.2).complete().status_code == 504


@pytest.mark.parametrize("value", ["0", "-1", "x", "1e3", "99999999999"])
def test_bad_deadlines(gateway, value):
    response = gateway.post("/v1/completions", {"prompt": "x"}, headers={"x-request-timeout-ms": value})
    assert response.json()["error"]["param"] == "x-request-timeout-ms"


def test_a_daemon_that_comes_back(start_gateway, new_daemon):
    first = new_daemon()
    gateway = start_gateway(backend=(first.address,))
    assert gateway.complete().status_code == 200
    first.server.stop(0).wait()
    response = gateway.complete()
    assert (response.status_code, response.headers["x-should-retry"]) == (503, "true")
    assert gateway.get("/health").status_code == 503
    new_daemon(int(first.address.rpartition(":")[2]))
    until = time.monotonic() + 10
    while gateway.complete().status_code != 200:
        assert time.monotonic() < until


def without_id(text: str) -> list[str]:
    return [line.partition('"model"')[2] or line for line in text.splitlines()]


@pytest.mark.parametrize(
    "fields", [{}, {"stop": ["日本"]}, {"logprobs": True, "top_logprobs": 1}, {"return_token_ids": True}]
)
def test_a_broken_stream_is_resumed_as_if_nothing_had_happened(gateway, daemon, fields):
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 30, **fields}
    expected = without_id(gateway.chat(**options).text)
    for breaks in ([1], [9], [3, 5, 2], [1, 1, 1, 1, 1]):
        daemon.vanish_after = list(breaks)
        calls = len(daemon.requests)
        assert without_id(gateway.chat(**options).text) == expected
        resumed = [request.resumed_tokens for request in daemon.requests[calls:]]
        assert resumed == [sum(breaks[:count]) for count in range(len(breaks) + 1)]


def test_resumption_waits_for_a_daemon_that_restarts(gateway, daemon, make_status):
    expected = without_id(gateway.complete(stream=True).text)
    daemon.vanish_after = [4]
    down = make_status(grpc.StatusCode.UNAVAILABLE, "loading", "NOT_READY", retry_s=2)
    daemon.failures = [None, down, down, down, down]
    assert without_id(gateway.complete(stream=True).text) == expected


def test_a_stream_of_several_choices_ends_with_an_error(gateway, daemon):
    daemon.vanish_after = [4]
    text = gateway.chat(stream=True, n=2).text
    assert '"code":"engine_unavailable"' in text
    assert "[DONE]" not in text


def test_a_whole_reply_is_made_again(gateway, daemon):
    daemon.vanish_after = [0]
    assert gateway.chat().json()["choices"][0]["message"]["content"] == daemon.reply


def test_two_daemons_share_the_load(start_gateway, new_daemon):
    daemons = [new_daemon(), new_daemon()]
    gateway = start_gateway(backend=tuple(daemon.address for daemon in daemons))
    gateway.get("/v1/models")
    daemons[0].servicer.gate = daemons[1].servicer.gate = threading.Semaphore(0)
    threads = [threading.Thread(target=gateway.complete) for _ in range(4)]
    until = time.monotonic() + 10
    for count, thread in enumerate(threads, 1):
        thread.start()
        while sum(len(daemon.servicer.requests) for daemon in daemons) < count:
            assert time.monotonic() < until
    daemons[0].servicer.gate.release(1000)
    for thread in threads:
        thread.join()
    assert [len(daemon.servicer.requests) for daemon in daemons] == [2, 2]
    daemons[0].server.stop(0).wait()
    assert gateway.get("/health").status_code == 200


def test_http_field_takes_the_longest_known_prefix():
    fields = {"a.b": "x", "a": "y"}
    assert http_field("a.b[3].c", fields) == "x"
    assert http_field("a.q", fields) == "y"
    assert http_field("q.r[2]", fields) == "r"
