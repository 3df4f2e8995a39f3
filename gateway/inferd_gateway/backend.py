"""One daemon: its channel, its stubs, and a generation that outlives a short outage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.v1 import inference_pb2 as pb
from inferd.v1 import inference_pb2_grpc, model_pb2_grpc
from inferd_gateway.channel import open_channel
from inferd_gateway.load import LoadWatch
from inferd_gateway.mux import MuxPool, MuxUnsupported
from inferd_gateway.resume import RETRIES, Progress, backoff, may_retry, retry_id

DEADLINE_MARGIN_S = 0.05
READINESS = "inferd.v1.InferenceService"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class CallContext:
    """What goes with every RPC of one HTTP request. `deadline` is CLOCK_MONOTONIC seconds."""

    request_id: str
    deadline: float
    client_deadline: bool = False
    metadata: tuple[tuple[str, str], ...] = field(default=())

    def remaining(self) -> float:
        return max(0.0, self.deadline - time.monotonic() - DEADLINE_MARGIN_S)


class Backend:
    """Owns the channel to one daemon. Made inside the event loop that uses it."""

    def __init__(
        self,
        target: str,
        token: str | None,
        credentials: grpc.ChannelCredentials | None = None,
        admin: str | None = None,
        admin_token: str | None = None,
    ) -> None:
        """admin: where its AdminService is, if its load is to be watched."""
        self.target = target
        self.open_streams = 0
        self.times_chosen = 0
        self.serving: bool | None = None  # as far as known
        self._channel = open_channel(target, credentials)
        self._token = (("authorization", f"Bearer {token}"),) if token else ()
        self.inference = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._mux = MuxPool(self.inference, self._token)
        self.models = model_pb2_grpc.ModelServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._load = LoadWatch(admin, admin_token, credentials, lambda: self.open_streams) if admin else None

    @property
    def reported_load(self) -> int | None:
        """Choices of all callers that run or wait at this daemon; None while it does not report."""
        return self._load.load() if self._load else None

    async def watch_load(self) -> None:
        """Runs until cancelled, where there is an AdminService to ask."""
        if self._load is not None:
            await self._load.follow()

    async def close(self) -> None:
        if self._load is not None:
            await self._load.close()
        await self._mux.close()
        await self._channel.close(None)

    async def unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Message, M], request: Message, context: CallContext
    ) -> M:
        """One call without side effects: UNAVAILABLE is retried. Raises grpc.aio.AioRpcError."""
        for attempt in range(RETRIES + 1):
            one = renamed(request, attempt) if attempt else request
            try:
                return await method(one, timeout=context.remaining(), metadata=self._metadata(context))
            except grpc.aio.AioRpcError as error:
                if not may_retry(error, attempt):
                    raise
            await asyncio.sleep(backoff(attempt))
        raise AssertionError("the last attempt returns or raises")

    async def generate(
        self,
        request: pb.GenerateRequest,
        context: CallContext,
        elsewhere: Callable[[Backend], Backend] | None = None,
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The messages of one generation. UNAVAILABLE is retried until the first has come, and resumed from after that,
        at elsewhere(the daemon that failed).

        Close the iterator (contextlib.aclosing): that is what cancels the call. Raises grpc.aio.AioRpcError.
        """
        progress, backend = Progress(request), self
        while True:
            backend.open_streams += 1
            try:
                async with aclosing(backend.attempt(progress.next_request(), context)) as messages:
                    async for message in messages:
                        yield progress.seen(message)
                return
            except MuxUnsupported:
                continue
            except grpc.aio.AioRpcError as error:
                if not progress.may_go_on(error):
                    raise
            finally:
                backend.open_streams -= 1
            if elsewhere is not None:
                backend = elsewhere(backend)
            await asyncio.sleep(progress.pause())

    def attempt(self, request: pb.GenerateRequest, context: CallContext) -> AsyncGenerator[pb.GenerateResponse, None]:
        """One try at this daemon."""
        way = self._multiplexed if self._mux.supported else self._alone
        return way(request, context)

    def _multiplexed(
        self, request: pb.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        metadata = (("x-request-id", context.request_id), *context.metadata)
        return self._mux.generate(request, context.remaining(), metadata)

    async def _alone(
        self, request: pb.GenerateRequest, context: CallContext
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """On a call of its own."""
        call = self.inference.Generate(request, timeout=context.remaining(), metadata=self._metadata(context))
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()  # the library never cancels an abandoned call

    async def is_serving(self) -> bool:
        """What grpc.health.v1 says, within a second."""
        try:
            reply = await self._health.Check(
                health_pb2.HealthCheckRequest(service=READINESS),
                timeout=1.0,
                metadata=self._token,
            )
        except grpc.aio.AioRpcError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def watch(self) -> AsyncGenerator[bool, None]:
        """Whether the daemon serves, now and whenever that changes. Raises grpc.aio.AioRpcError."""
        call = self._health.Watch(health_pb2.HealthCheckRequest(service=READINESS), metadata=self._token)
        try:
            async for reply in call:
                yield reply.status == health_pb2.HealthCheckResponse.SERVING
        finally:
            call.cancel()

    def _metadata(self, context: CallContext) -> tuple[tuple[str, str], ...]:
        return (("x-request-id", context.request_id), *context.metadata, *self._token)


def renamed(request: Message, attempt: int) -> Message:
    """The same request for a further attempt, under another id where it has one."""
    request_id: str = getattr(request, "request_id", "")
    if not request_id:
        return request
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = retry_id(request_id, attempt)  # type: ignore[attr-defined]  # it has one
    return copy
