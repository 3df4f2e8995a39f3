"""The gateway before the real daemon: generations share a stream, and one that is lost is resumed."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import grpc
import pytest
from inferd_gateway import mux
from inferd_gateway.backend import Backend, CallContext
from inferd_gateway.errors import details_of

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import free_port
from inferd.testing.wire import expected_tokens, make_generate
from inferd.v1 import inference_pb2 as pb


@pytest.fixture(scope="module")
def real() -> Iterator[DaemonProcess]:
    config = fake_config(scheduler={"max_num_seqs": 64, "max_waiting": 512})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.005}}) as process:
        yield process.wait_ready()


def context(seconds: float = 30.0) -> CallContext:
    return CallContext("test", time.monotonic() + seconds)


def request(seed: int, max_tokens: int) -> pb.GenerateRequest:
    made = make_generate(seed=seed, max_tokens=max_tokens)
    made.request_id = f"mux-{seed}-{max_tokens}"
    made.stream.mode = pb.STREAM_MODE_DELTAS
    return made


async def tokens(backend: Backend, made: pb.GenerateRequest, within: CallContext | None = None) -> list[int]:
    async with aclosing(backend.generate(made, within or context())) as messages:
        return [token async for message in messages for delta in message.choices for token in delta.token_ids]


async def drain(messages: AsyncIterator[object]) -> None:
    async for _ in messages:
        pass


def streams(backend: Backend) -> list[mux.MuxStream]:
    return backend._mux._streams


async def opened(address: str) -> AsyncIterator[Backend]:
    backend = Backend(address, None)
    try:
        yield backend
    finally:
        await backend.close()


def test_generations_share_a_stream(real: DaemonProcess) -> None:
    async def run() -> None:
        async for backend in opened(real.address):
            found = await asyncio.gather(*(tokens(backend, request(seed, 30)) for seed in range(50)))
            assert found == [expected_tokens(30, seed=seed) for seed in range(50)]
            assert [stream.active for stream in streams(backend)] == [0]

    asyncio.run(run())
    assert any("GenerateMux" in line for line in real.lines)


def test_another_stream_when_all_are_full(real: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "PER_STREAM", 2)

    async def run() -> None:
        async for backend in opened(real.address):
            await asyncio.gather(*(tokens(backend, request(seed, 20)) for seed in range(5)))
            assert len(streams(backend)) == 3

    asyncio.run(run())


def test_an_item_error_is_what_a_call_would_have_raised(real: DaemonProcess) -> None:
    async def run() -> None:
        async for backend in opened(real.address):
            bad = request(1, 4)
            bad.sampling.temperature = 9
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await tokens(backend, bad)
            assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            found = details_of(raised.value)
            assert (found.reason, found.field_path) == ("INVALID_PARAMETER", "sampling.temperature")

    asyncio.run(run())


def test_a_deadline_and_an_early_end_free_the_engine(real: DaemonProcess) -> None:
    async def run() -> None:
        async for backend in opened(real.address):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await tokens(backend, request(2, 2000), context(0.3))
            assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            async with aclosing(backend.generate(request(3, 2000), context())) as messages:
                await anext(messages)
            await asyncio.to_thread(real.wait_metrics, requests_running=0)
            assert await tokens(backend, request(4, 10)) == expected_tokens(10, seed=4)

    asyncio.run(run())


def test_a_reader_that_stopped_is_cut_off(real: DaemonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "MAX_BACKLOG", 5)

    async def run() -> None:
        async for backend in opened(real.address):
            async with aclosing(backend.generate(request(5, 2000), context())) as messages:
                await anext(messages)
                await asyncio.to_thread(real.wait_metrics, requests_running=0)
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await drain(messages)
            assert details_of(raised.value).reason == "SLOW_CONSUMER"

    asyncio.run(run())


def test_only_what_lies_unread_makes_a_reader_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting long for the first items, in a queue or a prefill, is no fault of the reader."""
    now = [1000.0]
    monkeypatch.setattr(mux.time, "monotonic", lambda: now[0])

    async def run() -> None:
        inbox = mux.Inbox()
        now[0] += 2 * mux.STALL_S
        inbox.put(pb.MuxItem(stream_id=1))
        inbox.put(pb.MuxItem(stream_id=1))
        assert not inbox.is_stuck
        now[0] += mux.STALL_S + 1
        assert inbox.is_stuck
        inbox.put(pb.MuxItem(stream_id=1))
        await inbox.take()
        assert not inbox.is_stuck
        now[0] += mux.STALL_S + 1
        assert inbox.is_stuck

    asyncio.run(run())


def test_a_daemon_without_it_is_asked_once(daemon, shared_daemon) -> None:
    async def run() -> None:
        async for backend in opened(shared_daemon.address):
            await tokens(backend, request(1, 5))
            await tokens(backend, request(2, 5))
            assert streams(backend) == [] or all(stream.broken for stream in streams(backend))

    asyncio.run(run())
    assert len(daemon.requests) == 2


def test_streams_of_a_killed_daemon_are_resumed_on_the_next(real: DaemonProcess) -> None:
    port = free_port()
    config = fake_config(server={"port": port})
    core = {"behaviour": {"step_s": 0.02}}
    under_way = threading.Event()

    async def one(backend: Backend, seed: int) -> list[int]:
        got: list[int] = []
        async with aclosing(backend.generate(request(seed, 100), context(60))) as messages:
            async for message in messages:
                got += [token for delta in message.choices for token in delta.token_ids]
                if len(got) > 10:
                    under_way.set()
        return got

    async def run() -> None:
        async for backend in opened(f"127.0.0.1:{port}"):
            found = await asyncio.gather(*(one(backend, seed) for seed in range(8)))
            assert found == [expected_tokens(100, seed=seed) for seed in range(8)]

    with DaemonProcess(config, core) as first:
        first.wait_ready()
        client = threading.Thread(target=asyncio.run, args=(run(),))
        client.start()
        assert under_way.wait(20)
        first.signal(signal.SIGKILL)
        first.wait()
    with DaemonProcess(config, core) as second:
        second.wait_ready()
        client.join(60)
        assert not client.is_alive()
        assert sum("GenerateMux" in line for line in second.lines) >= 8
