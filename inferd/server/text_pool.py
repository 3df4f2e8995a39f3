"""Tokenization beside the event loop: small inputs at once, big ones on threads, and only so many of those."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inferd.allocator import return_freed_memory
from inferd.errors import QueueFull

T = TypeVar("T")

INLINE_BYTES = 2048  # tokenized in well under a millisecond, about what a thread switch costs
THREADS = 2
MAX_PENDING = 64
LARGE_BYTES = 1 << 17  # a text whose tokens take megabytes on the way
TRIM_DELAY_S = 0.5  # after a large text: its request is refused or on its way by then, and others may come with it


class TextPool:
    """Runs text work. Raises QueueFull when too much is pending."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._pending = 0
        self._trim: asyncio.TimerHandle | None = None

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """The result of `work`, which handles about `size` bytes."""
        if size <= INLINE_BYTES:
            return work()
        if self._pending >= MAX_PENDING:
            raise QueueFull(
                f"{self._pending} texts are waiting to be tokenized, at most that many may", retry_after_s=1.0
            )
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor, work)
        finally:
            self._pending -= 1
            if size >= LARGE_BYTES and self._trim is None:
                self._trim = asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._return_memory)

    def _return_memory(self) -> None:
        """A megabyte of text leaves some sixty of free heap behind, and glibc would keep them."""
        self._trim = None
        asyncio.get_running_loop().run_in_executor(None, return_freed_memory)

    def close(self) -> None:
        if self._trim is not None:
            self._trim.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)
