"""What the two planes say to each other: StepPlan down, StepResult up. Frozen, small enough to send to every rank."""

from __future__ import annotations

import msgspec

from inferd.request import LogprobParams, PoolingParams, SamplingParams

NOT_FINITE = -1  # in place of a token id: the logits were not finite
NO_TOKEN = -2  # the masks of the request left nothing to draw
PENDING = -3  # in PlanItem.token_ids: the token that the step before this one draws for the sequence


class NewSequence(msgspec.Struct, frozen=True, array_like=True):
    """A sequence the executor has not seen, or has dropped since: all it needs until the sequence is dropped again.

    block_ids is its block table: rows of one block for each cache group (inferd.cache_groups), one row after another.
    An entry is -1 where the group's window has passed the row. An entry that the window passes later stays as it is,
    while its block may get other contents.

    history is (prompt + output tokens so far) when the sampler needs it, else empty. num_output_tokens of them, at
    the end, are output. blocked_token_ids may not be sampled while fewer than min_tokens are out (end-of-text and
    stop tokens).
    """

    seq_id: int
    block_ids: list[int]
    sampling: SamplingParams
    logprobs: LogprobParams | None
    prompt_logprobs: LogprobParams | None
    history: list[int]
    num_output_tokens: int
    min_tokens: int
    blocked_token_ids: tuple[int, ...]
    pooling: PoolingParams | None = None


class PlanItem(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Compute token_ids of one sequence at positions start, start+1, ...

    new_block_ids extends the sequence's block table by whole rows. choices lists the choice indices to sample from the
    last position's logits: () while the prompt is incomplete, (c,) for a running choice, (0, 1, .., n-1) when a prompt
    of n choices completes: the sequence goes on as choices[0], the others come as new sequences in the next step.

    guesses: the last so many of token_ids are guesses; the one choice is then sampled from the position before them and
    from each of theirs, in order.

    token_ids is (PENDING,) in a plan that was made before its predecessor's result was there; only executors that
    look ahead get such plans. When that token ended the choice, nobody reads what is computed from it.
    """

    seq_id: int
    start: int
    token_ids: list[int]
    new_block_ids: list[int]
    choices: tuple[int, ...]
    guesses: int = 0


class BlockCopy(msgspec.Struct, frozen=True, array_like=True):
    """Copy-on-write: sequence seq_id gets `destination` in place of the shared block `source`, copied before the step.

    All copies of a plan are made at the same time: none writes a block that another one reads or writes.
    """

    seq_id: int
    index: int  # position in NewSequence.block_ids
    source: int
    destination: int


class StepPlan(msgspec.Struct, frozen=True, array_like=True):
    """One step. Applied in order: dropped, new, copies, items.

    masks: for the items that sample under a constraint, the tokens that may be drawn: bit i of byte b stands for token
    8 b + i, tokens beyond the end may not. Only the ranks that sample need them.
    """

    step: int
    items: list[PlanItem]
    new: list[NewSequence] = []
    copies: list[BlockCopy] = []
    dropped: list[int] = []
    masks: dict[int, bytes] = {}  # by seq_id

    @property
    def num_tokens(self) -> int:
        return sum([len(item.token_ids) for item in self.items])  # a list: half the time of a generator


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, of the unmodified distribution (before penalties and temperature).

    rank is 1 for the most probable token. top_* hold the top_n most probable and the asked-for ids, in falling order
    of probability, asked-for ids last.
    """

    logprob: float
    rank: int
    top_token_ids: list[int]
    top_logprobs: list[float]


class SampledToken(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """token_id is NOT_FINITE or NO_TOKEN when none could be drawn: the choice fails, its batch mates do not."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class SequenceResult(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """samples in the order of PlanItem.choices, or, where there are guesses, of the positions.

    prompt_logprobs, when asked, hold the item's positions from max(start, 1) on; the first position that a sequence
    computes has none. Positions of a prompt that is computed in chunks follow each other without a gap.

    vector, with the last token of a prompt that is pooled: its float32 values, little-endian, as the model gives them
    (neither cut nor normalized); empty when they are not finite.
    """

    seq_id: int
    samples: list[SampledToken]
    prompt_logprobs: list[TokenLogprobs] = []
    vector: bytes = b""


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    step: int
    results: list[SequenceResult]
    compute_s: float


class RankTimings(msgspec.Struct, frozen=True, array_like=True):
    """Where the time of one worker went since it started. Waiting is for peers: collectives and the previous stage."""

    rank: int
    stage: int
    steps: int
    compute_s: float
    wait_s: float
