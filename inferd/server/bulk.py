"""Bidi bulk streams: many items in work at a time, answers as they come, a failed item's error in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from google.protobuf.message import Message

from inferd.errors import DuplicateRequest, InferdError, InvalidParameter
from inferd.server.call import Call
from inferd.server.fields import refuse_unknown_fields
from inferd.server.status import retry_ms, shorten, status_code
from inferd.v1 import common_pb2

Answer: TypeAlias = Callable[[Any, str], Awaitable[Message]]  # (an item's request, its default id) -> its response
BulkHandler: TypeAlias = Callable[[AsyncIterable[Message | None], Call], Awaitable[None]]
END = object()


class BulkStream:
    """One stream. An item counts as in work until its answer has been written: a client that does not read is not read
    from either, and HTTP/2 makes it wait."""

    def __init__(self, call: Call, response_class: type[Any], answer: Answer, max_items: int) -> None:
        self._call = call
        self._response_class = response_class
        self._answer = answer
        self._max_items = max_items
        self._live: set[int] = set()

    async def run(self, items: AsyncIterable[Message | None]) -> None:
        """Until the client has sent everything and has been answered. Raises what ends the whole stream.

        All writes are made here, in the call's own task: that is the one which a stalled write is cut in.
        """
        iterator = aiter(items)
        reading: asyncio.Task[object] | None = asyncio.create_task(next_item(iterator))
        working: set[asyncio.Task[Message]] = set()
        ended = False
        try:
            while reading or working:
                await asyncio.wait({*working, reading} if reading else working, return_when=asyncio.FIRST_COMPLETED)
                if reading is not None and reading.done():
                    item, reading = reading.result(), None
                    if item is END:
                        ended = True
                    else:
                        working.add(asyncio.create_task(self._serve(item)))
                for task in [task for task in working if task.done()]:
                    await self._call.write(task.result())
                    working.discard(task)
                if reading is None and not ended and len(working) < self._max_items:
                    reading = asyncio.create_task(next_item(iterator))
        finally:
            left = [*working, *([reading] if reading else [])]
            for rest in left:
                rest.cancel()
            await asyncio.gather(*left, return_exceptions=True)

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


def item_error(error: InferdError) -> common_pb2.ItemError:
    """What a call of its own would have ended with."""
    return common_pb2.ItemError(
        code=status_code(error).value[0],
        reason=error.reason,
        message=shorten(error.message),
        metadata=error.metadata,
        retry_after_ms=0 if error.retry_after_s is None else retry_ms(error.retry_after_s),
        field=error.field or "",
    )
