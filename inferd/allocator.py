"""Memory that is kept although nobody uses it: what the C library holds of freed heap, and pages of code that ran once.
Without glibc and Linux nothing here does anything."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # <malloc.h>
MADV_DONTNEED = 4  # <sys/mman.h>
MAPS = Path("/proc/self/maps")


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


def return_start_up_memory() -> None:
    """Give the system what only the start needed: freed heap, and the code of libraries. Most of that ran once, to set
    them up (75 MB in a core, nearly all of it torch's); what runs again comes back from the page cache as it is called.
    """
    return_freed_memory()
    if MAPS.exists():
        for start, end in code_mappings(MAPS.read_text()):
            drop_pages(start, end - start)


def drop_pages(address: int, size: int) -> None:
    """Give the system the pages that lie whole within the range. Memory of our own is zero when it is next read; of a
    file that is mapped and was not written, nothing is lost."""
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    first = -(-address // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if madvise is None or end <= first:
        return
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    madvise(first, end - first, MADV_DONTNEED)


def code_mappings(maps: str) -> Iterator[tuple[int, int]]:
    """The address ranges of files that are mapped to be executed, and not written: dropping them loses nothing."""
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if fields[1] == "r-xp" and len(fields) == 6 and fields[5].startswith("/"):
            start, _, end = fields[0].partition("-")
            yield int(start, 16), int(end, 16)


def _mallopt(option: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(option, value)
