"""Server-sent events, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.types import Receive, Scope, Send

from inferd_gateway.context import BODY
from inferd_gateway.errors import ApiError
from inferd_gateway.replies import event

PING = b": ping\n\n"
HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection."""


async def until_disconnect(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client goes. Raises ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await task


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends events as they come. The first is awaited by `opened`, so that an early error is a status of its own."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        first: asyncio.Future[bytes],
        keepalive_s: float,
        on_error: Callable[[ApiError], bytes],
    ) -> None:
        super().__init__(media_type="text/event-stream", headers=HEADERS)
        # Starlette computes a length for the empty body.
        del self.headers["content-length"]
        self._events = events
        self._first = first
        self._keepalive_s = keepalive_s
        self._on_error = on_error
        self._last_sent = 0.0

    @classmethod
    async def opened(
        cls,
        request: Request,
        events: AsyncGenerator[bytes, None],
        keepalive_s: float,
        on_error: Callable[[ApiError], bytes] = lambda error: event(error.body),
    ) -> EventStream:
        """Waits for the first event, but not longer than a client should wait for headers.

        on_error: what tells of an error once the stream has begun."""
        first: asyncio.Future[bytes] = asyncio.ensure_future(anext(events))
        try:
            await until_disconnect(request, _wait(first, keepalive_s))
        except BaseException:
            first.cancel()
            with contextlib.suppress(asyncio.CancelledError, ApiError):
                await first
            await events.aclose()
            raise
        return cls(events, first, keepalive_s, on_error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        body = scope[BODY]
        pump = asyncio.ensure_future(self._pump(body))
        others = {asyncio.ensure_future(_disconnected(receive)), asyncio.ensure_future(self._ping(body))}
        try:
            await asyncio.wait({pump, *others}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                raise ClientGone
            pump.result()
        finally:
            for task in (pump, *others):
                task.cancel()
            await asyncio.gather(pump, *others, return_exceptions=True)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        try:
            await self._send(send, await self._first)
            async for data in self._events:
                await self._send(send, data)
        except ApiError as error:
            await self._send(send, self._on_error(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, data: bytes) -> None:
        if data:
            self._last_sent = time.monotonic()
            await send({"type": "http.response.body", "body": data, "more_body": True})

    async def _ping(self, send: Send) -> None:
        """A comment whenever nothing was sent for a while; runs until cancelled."""
        if not self._first.done():
            await self._send(send, PING)
        while True:
            await asyncio.sleep(max(0.01, self._last_sent + self._keepalive_s - time.monotonic()))
            if time.monotonic() - self._last_sent >= self._keepalive_s:
                await self._send(send, PING)


async def _wait(first: asyncio.Future[bytes], timeout_s: float) -> None:
    done, _ = await asyncio.wait({first}, timeout=timeout_s)
    if done:
        first.result()
