"""GenerateMux as a client: many generations share a few streams, and what one engine step made is one message.

Reading one message for all callers costs this process a fraction of one per caller (docs/routing.md has the figures).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from inferd.v1 import common_pb2, inference_pb2_grpc
from inferd.v1 import inference_pb2 as pb

PER_STREAM = 64  # what losing a stream may cost; the daemon takes 256
STALL_S = 30.0
MAX_BACKLOG = 4096  # messages; a reader that slow is not waited for
REPROBE_S = 300.0
DOMAIN = "inferd"
ACCEPTED = "x-request-id"  # in the initial metadata of a stream that the daemon took

Metadata = Sequence[tuple[str, str]]
CODES = {code.value[0]: code for code in grpc.StatusCode}
SLOW = common_pb2.ItemError(code=10, reason="SLOW_CONSUMER", message="The client read nothing for too long.")


class MuxUnsupported(Exception):
    """The daemon has no GenerateMux."""


class Inbox:
    """What has come for one generation and was not read yet."""

    def __init__(self) -> None:
        self._items: deque[pb.MuxItem | grpc.aio.AioRpcError | MuxUnsupported] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._unread_since = 0.0  # while there are items: when the reader last took one, or the first came

    def put(self, item: pb.MuxItem | grpc.aio.AioRpcError | MuxUnsupported) -> None:
        if not self._items:
            self._unread_since = time.monotonic()
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_stuck(self) -> bool:
        """Whether nobody reads."""
        backlog = len(self._items)
        return backlog > MAX_BACKLOG or (backlog > 1 and time.monotonic() - self._unread_since > STALL_S)

    async def take(self) -> pb.MuxItem:
        """The next item. Raises the error that ended the generation."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._unread_since = time.monotonic()
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        return item


class MuxStream:
    """One GenerateMux call: a task that writes, one that reads."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceStub, metadata: Metadata) -> None:
        self._call = stub.GenerateMux(metadata=tuple(metadata))
        self._ids = itertools.count(1)
        self._inboxes: dict[int, Inbox] = {}
        self._outgoing: asyncio.Queue[pb.GenerateMuxRequest] = asyncio.Queue()
        self._tasks = [asyncio.create_task(self._write()), asyncio.create_task(self._read())]
        self.broken = False

    @property
    def active(self) -> int:
        return len(self._inboxes)

    def start(self, start: pb.MuxStart) -> tuple[int, Inbox]:
        stream_id, inbox = next(self._ids), Inbox()
        self._inboxes[stream_id] = inbox
        self._outgoing.put_nowait(pb.GenerateMuxRequest(stream_id=stream_id, start=start))
        return stream_id, inbox

    def forget(self, stream_id: int) -> None:
        """The caller reads no more; what has not ended is cancelled."""
        if self._inboxes.pop(stream_id, None) is not None and not self.broken:
            self._outgoing.put_nowait(pb.GenerateMuxRequest(stream_id=stream_id, cancel=pb.MuxCancel()))

    async def close(self) -> None:
        self.broken = True
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        """Nothing is written before the daemon has answered: a write to a call that was refused hides why."""
        try:
            if ACCEPTED not in await self._call.initial_metadata():
                return
            while True:
                await self._call.write(await self._outgoing.get())
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            self.broken = True  # the reader gets the reason

    async def _read(self) -> None:
        try:
            async for message in self._call:
                for item in message.items[:]:  # a slice: iterating over the field itself is slow
                    self._deliver(item)
            error = unavailable("the daemon ended the stream")
        except grpc.aio.AioRpcError as failed:
            error = failed
        self.broken = True
        self._tasks[0].cancel()
        for inbox in self._inboxes.values():
            inbox.put(lost(error))

    def _deliver(self, item: pb.MuxItem) -> None:
        inbox = self._inboxes.get(item.stream_id)
        if inbox is None:
            return
        inbox.put(item)
        if item.end:
            del self._inboxes[item.stream_id]
        elif inbox.is_stuck:
            self.forget(item.stream_id)
            inbox.put(item_failure(SLOW))


class MuxPool:
    """The streams to one daemon. Made inside the event loop that uses it."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceStub, metadata: Metadata) -> None:
        self._stub = stub
        self._metadata = metadata
        self._streams: list[MuxStream] = []
        self._absent_until = 0.0

    @property
    def supported(self) -> bool:
        """False for a while after the daemon said that it has no GenerateMux."""
        return time.monotonic() >= self._absent_until

    async def generate(
        self, request: pb.GenerateRequest, timeout_s: float, metadata: Metadata
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The messages of one generation; closing the iterator cancels it. Raises AioRpcError, MuxUnsupported."""
        start = pb.MuxStart(request=request, timeout=duration(timeout_s), metadata=dict(metadata))
        stream = self._stream()
        stream_id, inbox = stream.start(start)
        late = failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
        timer = asyncio.get_running_loop().call_later(timeout_s, inbox.put, late)
        try:
            while True:
                item = await inbox.take()
                if item.HasField("response"):
                    yield item.response
                elif item.HasField("error"):
                    raise item_failure(item.error)
                if item.end:
                    return
        except MuxUnsupported:
            self._absent_until = time.monotonic() + REPROBE_S
            raise
        finally:
            timer.cancel()
            stream.forget(stream_id)

    async def close(self) -> None:
        await asyncio.gather(*(stream.close() for stream in self._streams))

    def _stream(self) -> MuxStream:
        """The fullest stream that takes one more: the fewer streams, the more of a step comes as one message."""
        self._streams = [stream for stream in self._streams if not stream.broken]
        open_ones = (stream for stream in self._streams if stream.active < PER_STREAM)
        best = max(open_ones, key=lambda stream: stream.active, default=None)
        if best is None:
            best = MuxStream(self._stub, self._metadata)
            self._streams.append(best)
        return best


def lost(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError | MuxUnsupported:
    """What the end of a stream means for a generation on it: the daemon is away, unless it refused us."""
    if error.code() is grpc.StatusCode.UNIMPLEMENTED:
        return MuxUnsupported()
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        return error
    return unavailable(error.details() or "the stream was lost")


def unavailable(message: str) -> grpc.aio.AioRpcError:
    return failure(grpc.StatusCode.UNAVAILABLE, message)


def failure(code: grpc.StatusCode, message: str, details: bytes = b"") -> grpc.aio.AioRpcError:
    """What a call of its own would have raised."""
    trailers = grpc.aio.Metadata(*([("grpc-status-details-bin", details)] if details else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, message, None)


def item_failure(error: common_pb2.ItemError) -> grpc.aio.AioRpcError:
    """The failure that a call of its own would have ended with, details included."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    ]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_ms:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration(error.retry_after_ms / 1000)))
    status = status_pb2.Status(code=error.code, message=error.message)
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return failure(CODES.get(error.code, grpc.StatusCode.UNKNOWN), error.message, status.SerializeToString())


def duration(seconds: float) -> Duration:
    whole = Duration()
    whole.FromNanoseconds(max(0, int(seconds * 1e9)))
    return whole
