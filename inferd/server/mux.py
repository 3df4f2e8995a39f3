"""GenerateMux: many generations on one stream. What one engine step made for all of them is one message."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from google.protobuf.message import Message

from inferd.errors import InferdError, InvalidParameter, QueueFull
from inferd.server.call import Call, CallBase, CallRunner, Handler
from inferd.server.fields import check_duration, refuse_unknown_fields
from inferd.server.status import item_error
from inferd.v1 import inference_pb2

MAX_STREAMS = 256  # losing the RPC loses them all
METHOD = "/inferd.v1.InferenceService/GenerateMux"
FULL_RETRY_S = 0.1

Generate = Callable[[inference_pb2.GenerateRequest, CallBase], Awaitable[None]]


def mux_handler(generate: Generate, runner: CallRunner) -> Handler:
    """The handler of GenerateMux over the one of Generate."""

    async def handle(requests: AsyncIterator[inference_pb2.GenerateMuxRequest | None], call: Call) -> None:
        call.background = True
        await call.send_headers()  # the client writes nothing before it knows that it was let in
        await Mux(generate, runner, call).run(requests)

    return handle


class Outbox:
    """Items of all generations until the one writer takes them. Full while the reader is slow: producers wait then,
    and what the engine makes meanwhile is coalesced behind them."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.items: list[inference_pb2.MuxItem] = []
        self._room = asyncio.Event()

    async def put(self, item: inference_pb2.MuxItem) -> None:
        while len(self.items) >= MAX_STREAMS:
            self._room.clear()
            await self._room.wait()
        self.put_now(item)

    def put_now(self, item: inference_pb2.MuxItem) -> None:
        self.items.append(item)
        self.news.set()

    def take(self) -> list[inference_pb2.MuxItem]:
        taken, self.items = self.items, []
        self._room.set()
        return taken


class MuxCall(CallBase):
    """One generation of a multiplexed stream, as its handler sees it."""

    def __init__(self, stream_id: int, start: inference_pb2.MuxStart, outbox: Outbox) -> None:
        super().__init__(METHOD)
        self._stream_id = stream_id
        self._metadata = {key.lower(): value for key, value in start.metadata.items()}
        self._outbox = outbox
        self._ends: float | None = None

    def limit(self, timeout_s: float) -> None:
        self._ends = self.started + timeout_s

    def metadata_values(self, key: str) -> list[str]:
        return [self._metadata[key]] if key in self._metadata else []

    def time_remaining(self) -> float | None:
        return None if self._ends is None else max(0.0, self._ends - time.monotonic())

    async def write(self, message: Message) -> None:
        assert isinstance(message, inference_pb2.GenerateResponse)
        await self._outbox.put(inference_pb2.MuxItem(stream_id=self._stream_id, response=message))


class Mux:
    """One GenerateMux call. The handler's own task writes; one task reads, and each generation has one."""

    def __init__(self, generate: Generate, runner: CallRunner, call: Call) -> None:
        self._generate = generate
        self._runner = runner
        self._call = call
        self._outbox = Outbox()
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def run(self, requests: AsyncIterator[inference_pb2.GenerateMuxRequest | None]) -> None:
        """Until the client has half-closed, or the server ends, and no generation is left. Raises InferdError."""
        news = self._outbox.news
        helpers = [asyncio.create_task(self._read(requests)), asyncio.create_task(self._call.closing.wait())]
        for helper in helpers:
            helper.add_done_callback(lambda _: news.set())
        try:
            while True:
                await news.wait()
                news.clear()
                if items := self._outbox.take():
                    await self._call.write(inference_pb2.GenerateMuxResponse(items=items))
                if helpers[0].done():
                    helpers[0].result()
                if any(helper.done() for helper in helpers) and not self._tasks and not self._outbox.items:
                    return
        finally:
            tasks = [*helpers, *self._tasks.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, requests: AsyncIterator[inference_pb2.GenerateMuxRequest | None]) -> None:
        """Raises InvalidParameter for what belongs to no generation and must not pass unnoticed."""
        async for request in requests:
            match request.WhichOneof("op") if request is not None else None:
                case "start":
                    assert request is not None
                    self._start(request.stream_id, request.start)
                case "cancel":
                    assert request is not None
                    if request.stream_id in self._tasks:  # else it has ended meanwhile
                        self._tasks[request.stream_id].cancel()
                case _:
                    raise InvalidParameter("a message of GenerateMux must have start or cancel", field="op")

    def _start(self, stream_id: int, start: inference_pb2.MuxStart) -> None:
        if stream_id in self._tasks:
            raise InvalidParameter(f"stream_id {stream_id} is in use until its last item", field="stream_id")
        if len(self._tasks) >= MAX_STREAMS:
            full = QueueFull(f"{MAX_STREAMS} generations run on this stream, at most that many may: open another")
            full.retry_after_s = FULL_RETRY_S
            self._outbox.put_now(inference_pb2.MuxItem(stream_id=stream_id, error=item_error(full), end=True))
            return
        task = asyncio.create_task(self._serve(stream_id, start))
        self._tasks[stream_id] = task
        task.add_done_callback(lambda done: self._on_done(stream_id, done))

    async def _serve(self, stream_id: int, start: inference_pb2.MuxStart) -> None:
        call = MuxCall(stream_id, start, self._outbox)
        call.api_key = self._call.api_key

        async def work() -> None:
            call.choose_request_id(start.request.request_id, self._runner.max_request_id_chars)
            refuse_unknown_fields(start)
            if start.HasField("timeout"):
                call.limit(check_duration("timeout", start.timeout, allow_zero=True))
            await self._generate(start.request, call)

        result = await self._runner.settle(call, work())
        last = inference_pb2.MuxItem(stream_id=stream_id, end=True)
        if isinstance(result, InferdError):
            last.error.CopyFrom(item_error(result))
        await self._outbox.put(last)

    def _on_done(self, stream_id: int, task: asyncio.Task[None]) -> None:
        del self._tasks[stream_id]
        if task.cancelled():
            self._outbox.put_now(inference_pb2.MuxItem(stream_id=stream_id, end=True))
        else:
            task.result()
            self._outbox.news.set()
