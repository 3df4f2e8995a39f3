"""The load that daemons report: what is heard, for how long it counts, and where requests go by it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from inferd_gateway import load
from inferd_gateway.load import LoadWatch
from inferd_gateway.settings import Settings, SettingsError, check

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import wait_until
from inferd.testing.wire import make_generate
from inferd.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc

WAIT_S = 10.0
SHORT = {"model": "fake", "prompt": "hello", "max_tokens": 2}


class FakeAdmin(admin_pb2_grpc.AdminServiceServicer):
    """Sends what is put; None ends a stream. Refuses callers without the key."""

    def __init__(self) -> None:
        self.reports: asyncio.Queue[admin_pb2.WatchLoadResponse | None] = asyncio.Queue()
        self.requests: list[admin_pb2.WatchLoadRequest] = []

    async def WatchLoad(self, request: Any, context: Any) -> AsyncIterator[admin_pb2.WatchLoadResponse]:
        if ("authorization", "Bearer k") not in context.invocation_metadata():
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "no")
        self.requests.append(request)
        while (report := await self.reports.get()) is not None:
            yield report


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def watched(streams: list[int], token: str = "k") -> AsyncIterator[tuple[FakeAdmin, LoadWatch]]:
    """A watch of a fake AdminService; streams[0] are open from here."""
    admin, server = FakeAdmin(), grpc.aio.server()
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    watch = LoadWatch(f"127.0.0.1:{port}", token, None, lambda: streams[0])
    task = asyncio.create_task(watch.follow())
    try:
        yield admin, watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await watch.close()
        await server.stop(None)


def test_own_streams_are_counted_between_two_reports() -> None:
    async def scenario() -> None:
        streams = [2]
        async with watched(streams) as (admin, watch):
            assert watch.load() is None
            admin.reports.put_nowait(admin_pb2.WatchLoadResponse(running=5, waiting=1))
            await until(lambda: watch.load() == 6)
            assert admin.requests[0].heartbeat.seconds == load.HEARTBEAT_S < load.STALE_S
            streams[0] = 4
            assert watch.load() == 8
            streams[0] = 0
            assert watch.load() == 4
            # Made before the daemon saw what we have begun: what we have open is the least it can be.
            streams[0] = 9
            admin.reports.put_nowait(admin_pb2.WatchLoadResponse(running=1))
            await until(lambda: watch.load() == 9)

    asyncio.run(scenario())


def test_an_old_report_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with watched([0]) as (admin, watch):
            admin.reports.put_nowait(admin_pb2.WatchLoadResponse(running=5))
            await until(lambda: watch.load() == 5)
            monkeypatch.setattr(load, "STALE_S", 0.05)
            await until(lambda: watch.load() is None)
            monkeypatch.setattr(load, "STALE_S", 60)
            assert watch.load() == 5

    asyncio.run(scenario())


def test_a_stream_that_ends_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "RETRY_S", 0.05)

    async def scenario() -> None:
        async with watched([0]) as (admin, watch):
            admin.reports.put_nowait(admin_pb2.WatchLoadResponse(running=5))
            await until(lambda: watch.load() == 5)
            admin.reports.put_nowait(None)
            await until(lambda: watch.load() is None)
            admin.reports.put_nowait(admin_pb2.WatchLoadResponse(running=7))
            await until(lambda: watch.load() == 7)
            assert len(admin.requests) == 2

    asyncio.run(scenario())


def test_a_refusal_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(load, "RETRY_S", 0.01)
    attempts = 0
    listen = LoadWatch._listen

    async def counted(self: LoadWatch) -> None:
        nonlocal attempts
        attempts += 1
        await listen(self)

    monkeypatch.setattr(LoadWatch, "_listen", counted)

    async def scenario() -> None:
        async with watched([0], token="wrong") as (_, watch):
            await until(lambda: attempts >= 3)
            assert watch.load() is None

    asyncio.run(scenario())
    assert [record.status for record in caplog.records] == ["UNAUTHENTICATED"]


@pytest.mark.parametrize("pair", ["a:1", "a:1=", "b:1=c:1"])
def test_whose_admin_service_it_is_must_be_said(pair: str) -> None:
    with pytest.raises(SettingsError, match=r"backend-admin: expected BACKEND=ADMIN with one of a:1"):
        check(Settings(backend=("a:1",), backend_admin=(pair,)))


def finished(daemon: DaemonProcess) -> float:
    return sum(value for name, value in daemon.metrics().items() if name.startswith("inferd_requests_admitted_total"))


def test_requests_avoid_a_daemon_that_others_keep_busy(start_gateway: Any) -> None:
    """Real daemons. Six streams come to one of them directly; the gateway hears of them, or goes by its own."""
    core = {"behaviour": {"step_s": 0.02}}
    config = fake_config(server={"admin_listen": "127.0.0.1:0"})
    with contextlib.ExitStack() as stack:
        busy, idle = (stack.enter_context(DaemonProcess(config, core)).wait_ready() for _ in range(2))
        backends = (busy.address, idle.address)
        admins = tuple(f"{daemon.address}={daemon.admin}" for daemon in (busy, idle))
        seeing = start_gateway(backend=backends, backend_admin=admins)
        blind = start_gateway(backend=backends)
        channel = stack.enter_context(grpc.insecure_channel(busy.address))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls = [stub.Generate(make_generate(max_tokens=2000)) for _ in range(6)]
        readers = [threading.Thread(target=drained, args=(call,)) for call in calls]
        for reader in readers:
            reader.start()
        expected = {f'inferd_gateway_backend_load{{backend="{busy.address}"}} 6.0',
                    f'inferd_gateway_backend_load{{backend="{idle.address}"}} 0.0'}  # fmt: skip
        wait_until(lambda: expected <= set(seeing.get("/metrics").text.splitlines()), what="both loads known")
        wait_until(lambda: blind.get("/ready").status_code == 200, what="the other gateway ready")
        before = finished(busy), finished(idle)
        for _ in range(6):
            assert seeing.post("/v1/completions", SHORT).status_code == 200
        assert (finished(busy) - before[0], finished(idle) - before[1]) == (0, 6)
        for _ in range(6):
            assert blind.post("/v1/completions", SHORT).status_code == 200
        assert (finished(busy) - before[0], finished(idle) - before[1]) == (3, 9)
        assert f'inferd_gateway_backend_load{{backend="{busy.address}"}} NaN' in blind.get("/metrics").text
        for call in calls:
            call.cancel()
        for reader in readers:
            reader.join(WAIT_S)


def drained(call: Any) -> None:
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
