"""Plan items and the worker's sequences -> the tensors of one forward pass. Built anew each step; owns nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from inferd_kernels.ops import PagedBatch

from inferd.executor.sequence_state import SequenceState
from inferd.executor.transfer import upload
from inferd.step import PlanItem


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """ids [T] int64; row_starts[i] is the first of the rows of plan.items[i] (sequences with one token come first)."""

    ids: torch.Tensor
    paged: PagedBatch
    row_starts: list[int]


def build_batch(
    items: list[PlanItem], states: Mapping[int, SequenceState], block_size: int, device: torch.device
) -> ForwardBatch:
    """The states' block tables must already cover every token of the items."""
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
    tables = _block_tables(ordered, states, seq_lens, block_size)
    blocks = tables[np.repeat(np.arange(len(ordered)), lengths), positions // block_size].astype(np.int64)
    assert blocks.size == 0 or blocks.min() >= 0, "a token has no KV block"
    ids = np.fromiter((token for item in ordered for token in item.token_ids), np.int64, total)
    row_starts = np.empty(len(items), np.int64)
    row_starts[order] = cu_seqlens[:-1]
    slots = blocks * block_size + positions % block_size
    arrays = (ids, positions, slots, cu_seqlens, seq_lens, tables)
    tensors = [torch.from_numpy(array) for array in arrays] if device.type == "cpu" else upload(arrays, device)
    paged = PagedBatch(
        positions=tensors[1],
        slots=tensors[2],
        cu_seqlens=tensors[3],
        seq_lens=tensors[4],
        block_tables=tensors[5],
        num_decodes=int((lengths == 1).sum()),
        max_query_len=int(lengths.max(initial=0)),
        max_seq_len=int(seq_lens.max(initial=0)),
    )
    return ForwardBatch(tensors[0], paged, row_starts.tolist())


def _block_tables(
    items: list[PlanItem], states: Mapping[int, SequenceState], seq_lens: np.ndarray, block_size: int
) -> np.ndarray:
    """[B, max_blocks] int32, -1 beyond the blocks that each sequence's context needs."""
    needed = -(-seq_lens // block_size)
    tables = np.full((len(items), int(needed.max(initial=0))), -1, np.int32)
    for row, (item, count) in enumerate(zip(items, needed.tolist(), strict=True)):
        blocks = states[item.seq_id].blocks.values[:count]
        tables[row, : blocks.size] = blocks
    return tables
