"""Plan items and the worker's sequences -> the tensors of one forward pass. Built anew each step; owns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from inferd_kernels.ops import PagedBatch

from inferd.cache_groups import FULL
from inferd.executor.sequence_state import SequenceState
from inferd.executor.transfer import upload
from inferd.step import PlanItem


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """ids [T] int64; row_starts[i] is the first of the rows of plan.items[i] (sequences with one token come first).

    groups: the batch for each cache group; they differ in slots and block tables.
    """

    ids: torch.Tensor
    groups: tuple[PagedBatch, ...]
    row_starts: list[int]

    @property
    def paged(self) -> PagedBatch:
        """Of the first group, for what is the same in all."""
        return self.groups[0]


def build_batch(
    items: list[PlanItem],
    states: Mapping[int, SequenceState],
    block_size: int,
    device: torch.device,
    windows: tuple[int, ...] = FULL,
) -> ForwardBatch:
    """The states' block tables must already cover every token of the items. windows: of the cache groups."""
    num_groups = len(windows)
    lengths = np.fromiter((len(item.token_ids) for item in items), np.int32, len(items))
    order = np.argsort(lengths != 1, kind="stable")
    ordered = [items[index] for index in order]
    lengths = lengths[order]
    starts = np.fromiter((item.start for item in ordered), np.int64, len(ordered))
    cu_seqlens = np.zeros(len(ordered) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    row_offsets = np.repeat(starts - cu_seqlens[:-1], lengths)
    positions = np.arange(total, dtype=np.int64) + row_offsets
    seq_lens = (starts + lengths).astype(np.int32)
    tables = _block_tables(ordered, states, seq_lens, block_size, num_groups)
    owners, rows = np.repeat(np.arange(len(ordered)), lengths), positions // block_size
    slots = []
    for table in tables:
        blocks = table[owners, rows].astype(np.int64)
        assert blocks.size == 0 or blocks.min() >= 0, "a token has no KV block"
        slots.append(blocks * block_size + positions % block_size)
    if any(windows):
        tables = [_readable(table, seq_lens, block_size) for table in tables]
    ids = np.fromiter((token for item in ordered for token in item.token_ids), np.int64, total)
    row_starts = np.empty(len(items), np.int64)
    row_starts[order] = cu_seqlens[:-1]
    arrays: list[np.ndarray] = [ids, positions, cu_seqlens, seq_lens, *slots, *tables]
    tensors = [torch.from_numpy(array) for array in arrays] if device.type == "cpu" else upload(arrays, device)
    num_decodes, longest = int((lengths == 1).sum()), int(lengths.max(initial=0))
    groups = tuple(
        PagedBatch(
            positions=tensors[1],
            slots=tensors[4 + group],
            cu_seqlens=tensors[2],
            seq_lens=tensors[3],
            block_tables=tensors[4 + num_groups + group],
            num_decodes=num_decodes,
            max_query_len=longest,
            max_seq_len=int(seq_lens.max(initial=0)),
        )
        for group in range(num_groups)
    )
    return ForwardBatch(tensors[0], groups, row_starts.tolist())


def _block_tables(
    items: list[PlanItem], states: Mapping[int, SequenceState], seq_lens: np.ndarray, block_size: int, num_groups: int
) -> list[np.ndarray]:
    """Of each group [B, max_blocks] int32: -1 beyond the blocks that each sequence's context needs, and for those that
    the group's window had passed when the sequence was announced."""
    needed = -(-seq_lens // block_size)
    tables = np.full((len(items), int(needed.max(initial=0)) * num_groups), -1, np.int32)
    for row, (item, count) in enumerate(zip(items, needed.tolist(), strict=True)):
        blocks = states[item.seq_id].blocks.values[: count * num_groups]
        tables[row, : blocks.size] = blocks
    if num_groups == 1:
        return [tables]
    return [np.ascontiguousarray(tables[:, group::num_groups]) for group in range(num_groups)]


def _readable(table: np.ndarray, seq_lens: np.ndarray, block_size: int) -> np.ndarray:
    """Some block in place of those before a window: a kernel may read it, and leaves out what it read."""
    columns = np.arange(table.shape[1])
    return np.where((table < 0) & (columns < -(-seq_lens[:, None] // block_size)), 0, table).astype(np.int32)
