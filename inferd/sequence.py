"""Sequence: one choice on its way (all of them, until the prompt is computed). The only mutable noun; the scheduler is
its one writer, the KV manager writes the block fields on its behalf."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from typing import Protocol, Self

from inferd.account import Account
from inferd.request import Request

NEVER = sys.maxsize
FREED = -1  # in place of a block id: of a group with a window, which has passed the block


class Matcher(Protocol):
    """A choice's place in what its output must match."""

    @property
    def complete(self) -> bool:
        """Whether the output matches, and nothing may follow."""

    def advance(self, token_id: int) -> None:
        """Take the next token of the output."""

    def mask(self) -> bytes:
        """The tokens that may come next, as in StepPlan.masks."""

    def fork(self) -> Self:
        """Another one at the same place."""


class Speculator(Protocol):
    """Guesses what follows a sequence, once it has read it."""

    def read(self, tokens: list[int], most: int) -> int:
        """Take in at most `most` of the tokens that were not read yet; returns how many."""

    def guess(self, tokens: list[int], most: int, num_sequences: int) -> list[int]:
        """At most `most` guesses of what follows tokens, in a step of num_sequences."""

    def note(self, guessed: int, accepted: int) -> None:
        """What a step made of the last guesses."""


class SequenceStatus(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Sequence:
    """num_computed_tokens catches up with num_tokens; there are no other phases.

    [0, num_cached_tokens)      found in the prefix cache at the first admission, never computed for this request
    [.., num_computed_tokens)   K and V are in block_ids
    [.., num_tokens)            token ids are known; the last one is computed by the next step
    [.., num_slots)             positions that may be written: their blocks are held, and by this sequence alone
    """

    seq_id: int
    request: Request
    account: Account  # of the request's tenant
    choices: tuple[int, ...]  # sampled when all tokens are computed; several before the fork, none if no token may come
    token_ids: list[int]  # prompt, then output
    num_prompt_tokens: int
    max_tokens: int  # of prompt and output together; the choice ends there
    stop_token_ids: frozenset[int]  # end-of-text ones included
    status: SequenceStatus = SequenceStatus.WAITING
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_slots: int = 0
    block_ids: list[int] = field(default_factory=list)  # rows of one block for each cache group, see cache_groups
    spare_block_ids: list[int] = field(default_factory=list)  # held for rows to come; only where a group has a window
    block_hashes: list[bytes] = field(default_factory=list)  # chained, of the first full blocks; may run ahead
    publish_at: int = NEVER  # num_computed_tokens at which the next full block is offered to the prefix cache
    plain_until: int = 0  # below this many computed tokens a step brings one token, and none that ends it by length
    announced: bool = False  # the executor knows it
    matcher: Matcher | None = None  # at the end of token_ids
    in_flight: int = 0  # the step of the uncommitted plan it is in; 0: none
    ahead: int = 0  # the step of a second one, which computes the token that the first draws; 0: none
    speculator: Speculator | None = None  # once its prompt is computed, where there are guesses
    num_preemptions: int = 0
    first_scheduled: float | None = None
    key: int = field(init=False)  # the request's

    def __post_init__(self) -> None:
        self.key = self.request.key

    @property
    def held_block_ids(self) -> list[int]:
        return [block for block in self.block_ids if block != FREED] + self.spare_block_ids

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated for the caller, those of an earlier broken stream included."""
        return len(self.token_ids) - self.num_prompt_tokens + self.request.resumed_tokens

    @property
    def wants_prompt_logprobs(self) -> bool:
        """True until the prompt is computed, for a request that asked: every position must then be computed."""
        return self.request.prompt_logprobs is not None and len(self.token_ids) == self.num_prompt_tokens
