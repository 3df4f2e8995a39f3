"""A native engine: the library's ops for one instruction set, with a team of threads of its own."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from typing import TYPE_CHECKING

import torch

from inferd_kernels.cpu import library
from inferd_kernels.cpu.build import cached_library
from inferd_kernels.host import usable_processors

if TYPE_CHECKING:
    from collections.abc import Callable

NO_MEMORY, OUT_OF_RANGE = -1, -2
SLAB_BYTES = 32 << 20


class NativeEngine:
    """Owns the threads and their scratch memory; closed when the last reference goes. Calls from several threads are
    served one after the other. Threads that wait sleep after 60 us.

    threads  of the team, the caller's included; default: the processors this process may use
    isa      "avx512", "avx2" or "baseline"; default: the best this processor has
    Raises BuildError (build.py) when the library cannot be compiled, ValueError when the processor lacks `isa`.
    """

    def __init__(self, threads: int | None = None, isa: str = "") -> None:
        self._library = library.open_library(cached_library())
        self.threads = threads or usable_processors()
        self.handle = self._library.inferd_create(isa.encode(), self.threads)
        if not self.handle:
            raise ValueError(f"isa {isa!r} is not one that this processor has (avx512, avx2, baseline)")
        self._close = weakref.finalize(self, self._library.inferd_destroy, self.handle)
        self._slabs = Slabs()
        self.isa: str = self._library.inferd_isa(self.handle).decode()

    def call(self, op: str, args: ctypes.Structure) -> None:
        """Run one op. Raises IndexError for an id outside its table, MemoryError when scratch cannot be had."""
        function: Callable[..., int] = getattr(self._library, f"inferd_{op}")
        status = function(self.handle, args)
        if status == OUT_OF_RANGE:
            raise IndexError(f"{op}: an index is outside its table")
        if status == NO_MEMORY:
            raise MemoryError(f"{op}: no scratch memory")

    @property
    def scratch_bytes(self) -> int:
        """Memory that ops work in, and that the next ones will use again."""
        return int(self._library.inferd_scratch_bytes(self.handle))

    def release(self) -> None:
        """Give that memory back; the next op takes what it needs."""
        self._library.inferd_release(self.handle)

    def attention_bytes(self, shape: library.AttentionShape) -> int:
        """An upper bound of what attention takes of it, whatever the batch and however long the context."""
        return int(self._library.inferd_attention_bytes(self.handle, shape))

    def reserve(self, kind: str, shape: tuple[int, int]) -> torch.Tensor:
        """Memory for the packed bytes of a matrix [N, K] of format `kind`."""
        return self._slabs.take(self._library.inferd_packed_bytes(library.FORMATS[kind], *shape))

    def pack(self, source: torch.Tensor, kind: str, shape: tuple[int, int], packed: torch.Tensor, row: int) -> None:
        """Rows `source` [N, row bytes or K] of format `kind` into `packed` (csrc/layout.h), where `row` begins: a
        multiple of a panel's rows."""
        rows, width = shape
        source = source.contiguous()
        row_bytes = source.shape[1] * source.element_size()
        at = packed.data_ptr() + self._library.inferd_packed_bytes(library.FORMATS[kind], row, width)
        args = library.PackArgs(source.data_ptr(), at, row_bytes, library.FORMATS[kind], rows, width)
        self._library.inferd_pack(self.handle, args)


class Slabs:
    """Memory for packed weights, in large mappings that the kernel may back with huge pages: streaming through weights
    is bound by memory, and page walks cost part of it. A mapping lives as long as a tensor cut out of it."""

    def __init__(self) -> None:
        self._slab = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def take(self, num_bytes: int) -> torch.Tensor:
        """num_bytes bytes aligned to 64."""
        if self._used + num_bytes > self._slab.numel():
            memory = mmap.mmap(-1, max(SLAB_BYTES, num_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            self._slab, self._used = torch.frombuffer(memory, dtype=torch.uint8), 0
        taken = self._slab[self._used : self._used + num_bytes]
        self._used += -(-num_bytes // 64) * 64
        return taken
