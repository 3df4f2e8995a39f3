"""How the C library keeps memory that was freed. Without glibc nothing here does anything."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # <malloc.h>


def limit_arenas(count: int) -> None:
    """Threads share so many heaps. Before the first thread: each would open one of its own, and keep what a large
    request once took there."""
    _mallopt(M_ARENA_MAX, count)


@contextmanager
def freed_memory_returned() -> Iterator[None]:
    """Within, buffers of a matrix' size are mappings of their own and go back when freed; glibc would move ever larger
    ones into its heap, where holes stay: a fifth of a shard was measured. A bound of 32 MiB holds afterwards."""
    _mallopt(M_MMAP_THRESHOLD, 1 << 16)
    yield
    _mallopt(M_MMAP_THRESHOLD, 32 << 20)


def return_freed_memory() -> None:
    """Give the system what lies free in the heaps; some milliseconds, the GIL is not held."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
