"""Plan items to packed tensors: order, positions, slots and padding."""

from __future__ import annotations

import torch

from inferd.executor.batch import build_batch
from inferd.executor.sequence_state import SequenceState
from inferd.request import SamplingParams
from inferd.step import NewSequence, PlanItem


def state(blocks: list[int], history: list[int] | None = None, outputs: int = 0) -> SequenceState:
    sampling = SamplingParams(presence_penalty=1.0 if history else 0.0)
    return SequenceState.from_plan(NewSequence(0, blocks, sampling, None, None, history or [], outputs, 0, ()))


def test_single_tokens_come_first_and_rows_stay_findable() -> None:
    states = {1: state([5, 2]), 2: state([7, 8, 9]), 3: state([4])}
    items = [PlanItem(1, 2, [10, 11, 12], [], ()), PlanItem(2, 9, [20], [], (0,)), PlanItem(3, 0, [30, 31], [], ())]
    batch = build_batch(items, states, 4, torch.device("cpu"))
    assert batch.ids.tolist() == [20, 10, 11, 12, 30, 31]
    assert batch.row_starts == [1, 0, 4]
    paged = batch.paged
    assert paged.positions.tolist() == [9, 2, 3, 4, 0, 1]
    assert paged.slots.tolist() == [9 * 4 + 1, 5 * 4 + 2, 5 * 4 + 3, 2 * 4, 16, 17]
    assert paged.cu_seqlens.tolist() == [0, 1, 4, 6]
    assert paged.seq_lens.tolist() == [10, 5, 2]
    assert paged.block_tables.tolist() == [[7, 8, 9], [5, 2, -1], [4, -1, -1]]
    assert (paged.num_decodes, paged.max_query_len, paged.max_seq_len) == (1, 3, 10)
    assert (paged.slots.dtype, paged.block_tables.dtype) == (torch.int64, torch.int32)


def test_blocks_beyond_the_context_are_left_out() -> None:
    batch = build_batch([PlanItem(1, 0, [1], [], ())], {1: state([3, 6, 8])}, 4, torch.device("cpu"))
    assert batch.paged.block_tables.tolist() == [[3]]


def test_advance_takes_blocks_and_only_tokens_that_were_unknown() -> None:
    sequence = state([1], history=[7, 8, 9], outputs=1)
    assert sequence.history is not None
    sequence.advance(PlanItem(0, 0, [7, 8], [2], ()))
    sequence.advance(PlanItem(0, 2, [9], [], (0,)))
    assert sequence.history.num_tokens == 3
    sequence.advance(PlanItem(0, 3, [5], [3], (0,)))
    assert sequence.history.num_tokens == 4
    assert sequence.history.ends_with([9, 5])
    assert sequence.blocks.values.tolist() == [1, 2, 3]
    counts = dict(zip(sequence.history.token_ids.tolist(), sequence.history.output_counts.tolist(), strict=True))
    assert counts == {7: 0, 8: 0, 9: 1, 5: 1}


def test_output_tokens_are_counted_from_the_first_draw() -> None:
    sequence = state([1], history=[7, 8, 9], outputs=1)
    assert [sequence.num_output_tokens(position) for position in (3, 4, 5)] == [1, 2, 3]


def test_each_cache_group_has_slots_and_tables_of_its_own() -> None:
    """Rows of a table are one block of each group; one that a window has passed reads as some block."""
    states = {1: state([5, 6, 2, 3]), 2: state([7, -1, 8, 9, 10, 11])}
    items = [PlanItem(1, 4, [10], [], ()), PlanItem(2, 9, [20], [], ())]
    full, windowed = build_batch(items, states, 4, torch.device("cpu"), (0, 5)).groups
    assert full.slots.tolist() == [2 * 4, 10 * 4 + 1]
    assert windowed.slots.tolist() == [3 * 4, 11 * 4 + 1]
    assert full.block_tables.tolist() == [[5, 2, -1], [7, 8, 10]]
    assert windowed.block_tables.tolist() == [[6, 3, -1], [0, 9, 11]]
    assert full.positions is windowed.positions
