"""What a worker remembers of its sequences between steps. The worker is the only writer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from inferd.executor.pooling import PooledPrompt
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.growing import GrowingArray
from inferd.sampling.history import TokenHistory
from inferd.step import NewSequence, PlanItem, StepPlan


@dataclass(slots=True, eq=False)
class SequenceState:
    """Block table, sampling state, and what prompt log probabilities need across chunks."""

    new: NewSequence
    blocks: GrowingArray  # int32, the block table
    history: TokenHistory | None
    first_sampled_position: int | None = None
    last_row: torch.Tensor | None = None  # residual stream [E] of the last computed prompt position
    pooled: PooledPrompt | None = None

    @classmethod
    def from_plan(cls, new: NewSequence) -> SequenceState:
        blocks = GrowingArray(np.int32)
        blocks.extend(new.block_ids)
        history = TokenHistory(new.history, new.num_output_tokens) if new.history else None
        return cls(new, blocks, history, pooled=PooledPrompt(new.pooling) if new.pooling else None)

    def advance(self, item: PlanItem) -> None:
        """Take the item's blocks, and those of its tokens that were not known yet: they were generated."""
        self.blocks.extend(item.new_block_ids)
        if self.history is not None:
            self.history.extend_output(item.token_ids[max(self.history.num_tokens - item.start, 0) :])

    def num_output_tokens(self, position: int) -> int:
        """Output tokens before `position`, the position about to be sampled."""
        if self.first_sampled_position is None:
            self.first_sampled_position = position
        return self.new.num_output_tokens + position - self.first_sampled_position

    def sampling_row(self, item: PlanItem, choice: int, mask: bytes | None, back: int = 0) -> SamplingRow:
        """The draw that follows the item's last token, or the one `back` tokens before it."""
        position = item.start + len(item.token_ids) - back
        outputs = self.num_output_tokens(position)
        blocked = self.new.blocked_token_ids if outputs < self.new.min_tokens else ()
        return SamplingRow(self.new.sampling, self.history, choice, position, blocked, mask)


def apply_changes(states: dict[int, SequenceState], plan: StepPlan) -> None:
    """What the plan changes before its items: sequences dropped, new ones, and copied blocks in their tables."""
    for seq_id in plan.dropped:
        del states[seq_id]
    for new in plan.new:
        states[new.seq_id] = SequenceState.from_plan(new)
    for copy in plan.copies:
        states[copy.seq_id].blocks.values[copy.index] = copy.destination
