"""Sequence: one choice on its way. The only mutable noun; the scheduler is its one writer."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from inferd.request import Request


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """num_computed_tokens catches up with num_tokens; there are no other phases.

    [0, num_cached_tokens)      found in the prefix cache at the last admission, never computed by this sequence
    [.., num_computed_tokens)   K and V are in block_ids
    [.., num_tokens)            token ids are known; the last one is computed by the next step
    """

    seq_id: int
    request: Request
    choice: int
    token_ids: list[int]  # prompt, then output
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    block_ids: list[int] = field(default_factory=list)
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, chained
    forked: bool = False  # choices 1.. exist; before that choice 0 stands for all of them
    num_preemptions: int = 0
    first_scheduled: float | None = None
    first_token: float | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated for the caller, those of an earlier broken stream included."""
        return self.num_tokens - self.num_prompt_tokens + self.request.resumed_tokens
