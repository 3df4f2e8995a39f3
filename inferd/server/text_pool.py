"""Tokenization beside the event loop: small inputs at once, big ones on threads, and only so many of those."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from inferd.errors import QueueFull

T = TypeVar("T")

INLINE_BYTES = 2048  # tokenized in well under a millisecond, about what a thread switch costs
THREADS = 2
MAX_PENDING = 64


class TextPool:
    """Runs text work. Raises QueueFull when too much is pending."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="text")
        self._pending = 0

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

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
