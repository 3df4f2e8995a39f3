"""Bidi bulk streams: many items in work at a time, answers as they come, a failed item's error in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from google.protobuf.message import Message

from inferd.errors import Draining, DuplicateRequest, InferdError, InvalidParameter
from inferd.server.call import Call
from inferd.server.fields import refuse_unknown_fields
from inferd.server.status import item_error

Answer: TypeAlias = Callable[[Any, str], Awaitable[Message]]  # (an item's request, its default id) -> its response
END = object()


class BulkStream:
    """One stream. An item counts as in work until its answer has been written: a client that does not read is not read
    from either, and HTTP/2 makes it wait."""

    def __init__(
        self,
        call: Call,
        response_class: type[Any],
        answer: Answer,
        max_items: int,
        is_draining: Callable[[], bool],
    ) -> None:
        self._call = call
        self._response_class = response_class
        self._answer = answer
        self._max_items = max_items
        self._is_draining = is_draining
        self._live: set[int] = set()

    async def run(self, items: AsyncIterable[Message | None]) -> None:
        """Until the client has sent everything and has been answered. A server that shuts down answers what it has read
        and raises Draining. Raises what else ends the whole stream.

        All writes are made here, in the call's own task: that is the one which a stalled write is cut in.
        """
        iterator = aiter(items)
        closing: asyncio.Task[object] = asyncio.create_task(self._call.closing.wait())
        reading: asyncio.Task[object] | None = asyncio.create_task(next_item(iterator))
        working: set[asyncio.Task[Message]] = set()
        try:
            while True:
                self._call.background = not working  # a drain waits for items, not for a client that is silent
                await asyncio.wait({closing, *working, *filter(None, [reading])}, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    item, reading = reading.result(), None
                    if item is END:
                        break
                    working.add(asyncio.create_task(self._serve(item)))
                await self._write_done(working)
                if closing.done() or (not working and self._is_draining()):
                    raise Draining("the server is shutting down", retry_after_s=1.0)
                if reading is None and len(working) < self._max_items:
                    reading = asyncio.create_task(next_item(iterator))
            while working:
                await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
                await self._write_done(working)
        finally:
            left = [closing, *working, *filter(None, [reading])]
            for rest in left:
                rest.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _write_done(self, working: set[asyncio.Task[Message]]) -> None:
        """Send what is ready, and take it out of `working`."""
        for task in [task for task in working if task.done()]:
            await self._call.write(task.result())
            working.discard(task)

    async def _serve(self, item: Any) -> Message:
        """The item's outcome. Raises only what is nobody's fault but ours."""
        if item is None:
            raise InvalidParameter("an item is no valid message of this stream")
        response: Any = self._response_class(item_id=item.item_id)
        try:
            response.response.CopyFrom(await self._result(item))
        except InferdError as error:
            response.error.CopyFrom(item_error(error))
        return response  # type: ignore[no-any-return]  # one of the generated messages

    async def _result(self, item: Any) -> Message:
        item_id = item.item_id
        if item_id in self._live:
            raise DuplicateRequest(f"an item with the id {item_id} is in work", field="item_id")
        self._live.add(item_id)
        try:
            refuse_unknown_fields(item)
            if not item.HasField("request"):
                raise InvalidParameter("request is missing", field="request")
            # Not the form of a caller's own id, so that the two never meet.
            return await self._answer(item.request, f"{self._call.request_id}/{item_id}")
        finally:
            self._live.discard(item_id)


async def next_item(items: AsyncIterator[Message | None]) -> object:
    """The next item, None for bytes that are none, END at the end."""
    return await anext(items, END)
