"""Decode steps from captured CUDA graphs: one launch instead of a dozen per layer, whose host time is a small model's.

A graph is captured per bucket: a number of rows and a bound on the context. A step takes the smallest bucket that
holds it; the rows it does not fill have length 0 and slot -1, compute nothing that is kept and write nothing. Inputs
sit in buffers that live as long as the graphs; lengths are read from them on the device, so replaying needs no
launch parameter to change.

Without capture (on a CPU) the same buffers, buckets and padding run op by op, which is how CI tests this. On an H100
replay equalled the steps op by op, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from inferd_kernels.ops import PagedBatch

from inferd.models.model import Model

GRAPH_BYTES = 25 << 20  # of a captured graph beside what it computes in, which all share: an estimate
SHORTEST_CONTEXT = 2048  # tokens; the first bound, each next one four times as long


@dataclass(slots=True)
class Bucket:
    """One captured step. graph is None where nothing is captured."""

    ids: torch.Tensor
    groups: tuple[PagedBatch, ...]  # of each cache group
    graph: torch.cuda.CUDAGraph | None = None
    stream: torch.Tensor | None = None  # the captured step's result, written by each replay


@dataclass(frozen=True, slots=True)
class Buffers:
    """Inputs of the largest bucket; smaller ones use the first rows."""

    ids: torch.Tensor
    positions: torch.Tensor
    slots: tuple[torch.Tensor, ...]  # of each cache group, as tables
    starts: torch.Tensor
    seq_lens: torch.Tensor
    tables: tuple[torch.Tensor, ...]

    @classmethod
    def allocate(cls, rows: int, table_width: int, num_groups: int, device: torch.device) -> Buffers:
        longs = torch.zeros((2, rows), dtype=torch.int64, device=device)
        shorts = torch.zeros(rows, dtype=torch.int32, device=device)
        return cls(
            ids=longs[0],
            positions=longs[1],
            slots=tuple(torch.full((num_groups, rows), -1, dtype=torch.int64, device=device)),
            starts=torch.arange(rows + 1, dtype=torch.int32, device=device),
            seq_lens=shorts,
            tables=tuple(torch.full((num_groups, rows, table_width), -1, dtype=torch.int32, device=device)),
        )

    def fill(self, ids: torch.Tensor, groups: Sequence[PagedBatch], rows: int) -> None:
        """The step's rows, and padding up to `rows`."""
        count, batch = len(ids), groups[0]
        for buffer, values, padding in (
            (self.ids, ids, 0),
            (self.positions, batch.positions, 0),
            (self.seq_lens, batch.seq_lens, 0),
            *((slots, group.slots, -1) for slots, group in zip(self.slots, groups, strict=True)),
        ):
            buffer[:count].copy_(values)
            buffer[count:rows].fill_(padding)
        for table, group in zip(self.tables, groups, strict=True):
            table[:count, : group.block_tables.shape[1]].copy_(group.block_tables)


class DecodeGraphs:
    """Runs the decode steps of a model that is one stage. max_rows: the most sequences that run at once."""

    def __init__(self, decoder: Model, max_rows: int, max_context: int, block_size: int, device: torch.device) -> None:
        self._decoder = decoder
        self._device = device
        self._rows = row_buckets(max_rows)
        self._contexts = context_buckets(max_context)
        self._buffers = Buffers.allocate(self._rows[-1], -(-max_context // block_size), len(decoder.windows), device)
        self._buckets = {key: self._bucket(*key) for key in product(self._rows, self._contexts)}

    def takes(self, batch: PagedBatch) -> bool:
        """Whether each sequence of the step has one query token, and there is a bucket for them."""
        rows = len(batch.seq_lens)
        return rows == batch.num_decodes <= self._rows[-1] and batch.max_seq_len <= self._contexts[-1]

    def forward(self, ids: torch.Tensor, *groups: PagedBatch) -> torch.Tensor:
        """Model.forward for a step that takes() accepts. The result is valid until the next call."""
        rows = smallest(self._rows, len(ids))
        bucket = self._buckets[rows, smallest(self._contexts, groups[0].max_seq_len)]
        self._buffers.fill(ids, groups, rows)
        if bucket.graph is None:
            return self._decoder.forward(bucket.ids, *bucket.groups)[: len(ids)]
        bucket.graph.replay()
        assert bucket.stream is not None, "a graph has a result"
        return bucket.stream[: len(ids)]

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture every bucket, the largest first: the others find their memory in its pool."""
        pool = torch.cuda.graph_pool_handle()
        for key in sorted(self._buckets, reverse=True):
            bucket = self._buckets[key]
            self._decoder.forward(bucket.ids, *bucket.groups)  # compiles kernels; all rows are padding
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            # Of this thread alone: another's calls, such as those of NCCL's watchdog, would end a global capture.
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                bucket.stream = self._decoder.forward(bucket.ids, *bucket.groups)
            bucket.graph = graph

    def _bucket(self, rows: int, context: int) -> Bucket:
        buffers = self._buffers
        groups = tuple(
            PagedBatch(
                positions=buffers.positions[:rows],
                slots=slots[:rows],
                cu_seqlens=buffers.starts[: rows + 1],
                seq_lens=buffers.seq_lens[:rows],
                block_tables=table[:rows],
                num_decodes=rows,
                max_query_len=1,
                max_seq_len=context,
            )
            for slots, table in zip(buffers.slots, buffers.tables, strict=True)
        )
        return Bucket(buffers.ids[:rows], groups)


def num_graphs(max_rows: int, max_context: int) -> int:
    return len(row_buckets(max_rows)) * len(context_buckets(max_context))


def row_buckets(most: int) -> list[int]:
    """1, 2, 4, 8, then steps of 8 to 64, of 16 to 256, of 64: at most an eighth of a large step is padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, most + 64, 64)]
    return [size for size in sizes if size < most] + [most]


def context_buckets(most: int) -> list[int]:
    """Bounds that quadruple: the decode grid has a program per split of the bound, most of which leave at once."""
    bounds, bound = [], SHORTEST_CONTEXT
    while bound < most:
        bounds.append(bound)
        bound *= 4
    return [*bounds, most]


def smallest(sizes: list[int], least: int) -> int:
    """The first of ascending sizes that is not below least."""
    return next(size for size in sizes if size >= least)
