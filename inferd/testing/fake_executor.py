"""FakeExecutor: no model. Its next token is arithmetic over the tokens it finds in its KV blocks, so that a wrong block
table, position or copy changes the answer; most mistakes of a plan it reports by itself."""

from __future__ import annotations

import struct
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from inferd.cache_groups import FULL
from inferd.executor.base import ExecutorDead, ExecutorInfo
from inferd.request import LogprobParams
from inferd.step import (
    NO_TOKEN,
    NOT_FINITE,
    PENDING,
    BlockCopy,
    NewSequence,
    PlanItem,
    RankTimings,
    SampledToken,
    SequenceResult,
    StepPlan,
    StepResult,
    TokenLogprobs,
)

Slot = tuple[int, int, int]  # token id, position, cache group


class PlanError(AssertionError):
    """A plan that a real executor would compute nonsense from."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What the fake does beside answering. Steps count from 1."""

    step_s: float = 0.0  # how long a step takes
    die_at_step: int | None = None  # ExecutorDead
    fail_at_step: int | None = None  # an exception nobody expects
    nan_seeds: tuple[int, ...] = ()  # requests of these seeds get logits that are not finite
    script: tuple[int, ...] = ()  # output tokens in order, repeated; instead of next_token


def fake_info(
    num_blocks: int = 64,
    block_size: int = 4,
    max_context_tokens: int = 128,
    vocab_size: int = 1000,
    pipeline_depth: int = 1,
    looks_ahead: bool = False,
    windows: tuple[int, ...] = FULL,
) -> ExecutorInfo:
    return ExecutorInfo(
        architecture="fake",
        dtype="float32",
        quantization="none",
        vocab_size=vocab_size,
        max_context_tokens=max_context_tokens,
        block_size=block_size,
        num_blocks=num_blocks,
        weight_bytes=0,
        kv_bytes=0,
        backends={"fake": "fake"},
        pipeline_depth=pipeline_depth,
        looks_ahead=looks_ahead,
        windows=windows,
    )


def next_token(token_ids: Iterable[int], seed: int, choice: int, vocab_size: int, first: int = 0) -> int:
    """(sum of (i + 1) * (token + 1)) * 31 + 7 * seed + 13 * choice, modulo the vocabulary. first: position of the first
    of these tokens."""
    weighted = sum((position + 1) * (token_id + 1) for position, token_id in enumerate(token_ids, first))
    return (weighted * 31 + 7 * seed + 13 * choice) % vocab_size


def sight(windows: tuple[int, ...]) -> int:
    """How far a model of these cache groups looks back; 0: to the beginning."""
    return 0 if 0 in windows else max(windows)


def solo_tokens(
    prompt: Sequence[int], seed: int, choice: int, num_tokens: int, vocab_size: int, window: int = 0
) -> list[int]:
    """What a sequence generates that is alone and never ends early, by a model that looks back `window` tokens."""
    token_ids = list(prompt)
    for _ in range(num_tokens):
        first = max(len(token_ids) - window, 0) if window else 0
        token_ids.append(next_token(token_ids[first:], seed, choice, vocab_size, first))
    return token_ids[len(prompt) :]


def fake_logprobs(token_id: int, params: LogprobParams, vocab_size: int) -> TokenLogprobs:
    """-(token mod 10) - 1 for the token, its top_n successors with -1, -2, ..., asked-for ids with -100."""
    top = [(token_id + i) % vocab_size for i in range(params.top_n)]
    values = [-1.0 - i for i in range(params.top_n)]
    asked = list(params.token_ids)
    return TokenLogprobs(-(token_id % 10) - 1.0, 1, top + asked, values + [-100.0] * len(asked))


def fake_vector(token_ids: Sequence[int], second_start: int | None = None) -> bytes:
    """Four float32: how many tokens, their sum, the first one, and where a pair's second text begins (0: no pair)."""
    return struct.pack("<4f", len(token_ids), sum(token_ids), token_ids[0], second_start or 0)


class _State:
    """What a worker keeps of a sequence."""

    def __init__(self, new: NewSequence) -> None:
        self.new = new
        self.table = list(new.block_ids)
        self.num_output_tokens = new.num_output_tokens
        self.first_draw: int | None = None  # position of the first token drawn
        self.drawn: tuple[int, int] | None = None  # step, token


class FakeExecutor:
    def __init__(
        self,
        info: ExecutorInfo | None = None,
        behaviour: Behaviour = Behaviour(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.info = info or fake_info()
        self.behaviour = behaviour
        self.is_shut_down = False
        self._sleep = sleep
        self._states: dict[int, _State] = {}
        self._windows = self.info.windows
        self._users: Counter[int] = Counter()  # block -> tables that hold it in a group without a window
        self._kv: list[list[Slot | None]] = [[None] * self.info.block_size for _ in range(self.info.num_blocks)]
        self._step = 0
        self._results: deque[StepResult] = deque()
        self.given_back: list[tuple[int, int]] = []

    def submit(self, plan: StepPlan) -> None:
        _require(len(self._results) < self.info.max_in_flight, "more plans in flight than the pipeline holds")
        self._results.append(self.execute(plan))

    def collect(self) -> StepResult:
        return self._results.popleft()

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        for block in (block for first, end in blocks for block in range(first, end)):
            self._kv[block] = [None] * self.info.block_size
        self.given_back += blocks

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        self.on_death = on_death

    def timings(self) -> list[RankTimings]:
        return []

    def execute(self, plan: StepPlan) -> StepResult:
        """Raises PlanError for an inconsistent plan, ExecutorDead and RuntimeError when Behaviour says so."""
        started = time.monotonic()
        self._misbehave(plan)
        for seq_id in plan.dropped:
            _require(seq_id in self._states, f"sequence {seq_id} is dropped and was never there")
            self._users.subtract(self._whole(self._states.pop(seq_id).table))
        for new in plan.new:
            _require(new.seq_id not in self._states, f"sequence {new.seq_id} is there already")
            state = self._states[new.seq_id] = _State(new)
            self._users.update(self._whole(state.table))
        check_copies(plan.copies)
        for copy in plan.copies:
            self._copy(copy)
        results = [self._compute(item, plan.masks.get(item.seq_id)) for item in plan.items]
        return StepResult(plan.step, results, time.monotonic() - started)

    def shutdown(self) -> None:
        self.is_shut_down = True

    def _misbehave(self, plan: StepPlan) -> None:
        _require(plan.step == self._step + 1, f"step {plan.step} follows step {self._step}")
        self._step = plan.step
        if self.behaviour.step_s:
            self._sleep(self.behaviour.step_s)
        if plan.step == self.behaviour.die_at_step:
            raise ExecutorDead("the fake worker died")
        if plan.step == self.behaviour.fail_at_step:
            raise RuntimeError("the fake step failed")

    def _copy(self, copy: BlockCopy) -> None:
        table = self._states[copy.seq_id].table
        _require(table[copy.index] in (copy.source, copy.destination), f"{copy} is not in table {table}")
        if not self._windows[copy.index % len(self._windows)]:
            self._users.subtract([table[copy.index]])
            self._users.update([copy.destination])
        table[copy.index] = copy.destination
        self._kv[copy.destination] = list(self._kv[copy.source])

    def _compute(self, item: PlanItem, mask: bytes | None) -> SequenceResult:
        _require(item.seq_id in self._states, f"sequence {item.seq_id} was never announced")
        state = self._states[item.seq_id]
        state.table += item.new_block_ids
        _require(len(item.new_block_ids) % len(self._windows) == 0, f"{item} brings no whole rows")
        self._users.update(self._whole(item.new_block_ids))
        for offset, token_id in enumerate(item.token_ids):
            self._write(state, item.start + offset, self._pending(state) if token_id == PENDING else token_id)
        samples: list[SampledToken] = []
        if item.choices:
            end = item.start + len(item.token_ids)
            if state.first_draw is None:
                state.first_draw = end - item.guesses
            context = self._read(state, item.start, end)
            for drawn in range(end - item.guesses, end + 1):  # the position of each token that is drawn
                state.num_output_tokens = state.new.num_output_tokens + drawn - state.first_draw
                samples += [self._sample(state, context, drawn, choice, mask) for choice in item.choices]
            state.drawn = self._step, max(samples[0].token_id, 0)
        return SequenceResult(
            item.seq_id, samples, prompt_logprobs(state.new, item, self.info.vocab_size), self._vector(state, item)
        )

    def _pending(self, state: _State) -> int:
        _require(self.info.looks_ahead, "a plan looks ahead")
        _require(state.drawn is not None and state.drawn[0] == self._step - 1, "a token is due that was not drawn")
        assert state.drawn is not None
        return state.drawn[1]

    def _vector(self, state: _State, item: PlanItem) -> bytes:
        params, end = state.new.pooling, item.start + len(item.token_ids)
        if params is None or end < params.num_tokens or state.new.sampling.seed in self.behaviour.nan_seeds:
            return b""
        return fake_vector(list(self._read(state, item.start, end).values()), params.second_start)

    def _whole(self, table: list[int]) -> list[int]:
        """The blocks of a table that are of groups without a window. Of the others nobody says when they are freed."""
        windows = self._windows
        return [block for place, block in enumerate(table) if not windows[place % len(windows)]]

    def _write(self, state: _State, position: int, token_id: int) -> None:
        index, offset = divmod(position, self.info.block_size)
        row = state.table[index * len(self._windows) : (index + 1) * len(self._windows)]
        _require(len(row) == len(self._windows), f"position {position} is beyond table {state.table}")
        _require(len(set(row)) == len(row), f"a block is twice in row {row}")
        for group, (block, window) in enumerate(zip(row, self._windows, strict=True)):
            users = self._users[block]
            _require(users == (0 if window else 1), f"block {block} of {row} is written and held by {users} others")
            self._kv[block][offset] = (token_id, position, group)

    def _read(self, state: _State, start: int, end: int) -> dict[int, int]:
        """The tokens that queries at [start, end) read through the block tables of all groups, by position."""
        found: dict[int, int] = {}
        for group, window in enumerate(self._windows):
            for position in range(max(start - window + 1, 0) if window else 0, end):
                index, offset = divmod(position, self.info.block_size)
                block = state.table[index * len(self._windows) + group]
                _require(block >= 0, f"position {position} reads a freed block in {state.table}")
                slot = self._kv[block][offset]
                _require(
                    slot is not None and slot[1:] == (position, group), f"{position} reads {slot} in {state.table}"
                )
                assert slot is not None
                _require(found.setdefault(position, slot[0]) == slot[0], f"groups differ at position {position}")
        return dict(sorted(found.items()))

    def _sample(
        self, state: _State, context: dict[int, int], end: int, choice: int, mask: bytes | None
    ) -> SampledToken:
        """context: token ids by position; those before `end` count, as far as the model looks back."""
        new, window = state.new, sight(self._windows)
        if new.sampling.seed in self.behaviour.nan_seeds:
            return SampledToken(NOT_FINITE)
        if self.behaviour.script:
            token_id = self.behaviour.script[state.num_output_tokens % len(self.behaviour.script)]
        else:
            first = max(end - window, 0) if window else 0
            seen = [context[position] for position in range(first, end)]
            token_id = next_token(seen, new.sampling.seed, choice, self.info.vocab_size, first)
        blocked = new.blocked_token_ids if state.num_output_tokens < new.min_tokens else ()
        for _ in range(self.info.vocab_size):
            if token_id not in blocked and is_allowed(token_id, mask):
                break
            token_id = (token_id + 1) % self.info.vocab_size
        else:
            return SampledToken(NO_TOKEN)
        if new.logprobs is None:
            return SampledToken(token_id)
        return SampledToken(token_id, fake_logprobs(token_id, new.logprobs, self.info.vocab_size))


def check_copies(copies: Sequence[BlockCopy]) -> None:
    """Kernels make the copies of a plan at the same time."""
    sources = {copy.source for copy in copies}
    destinations = [copy.destination for copy in copies]
    _require(not sources.intersection(destinations), f"a block is read by one copy and written by another: {copies}")
    _require(len(set(destinations)) == len(destinations), f"a block is written by two copies: {copies}")


def prompt_logprobs(new: NewSequence, item: PlanItem, vocab_size: int) -> list[TokenLogprobs]:
    """Of the item's positions from 1 on."""
    if new.prompt_logprobs is None:
        return []
    targets = item.token_ids[1:] if item.start == 0 else item.token_ids
    return [fake_logprobs(token_id, new.prompt_logprobs, vocab_size) for token_id in targets]


def is_allowed(token_id: int, mask: bytes | None) -> bool:
    return mask is None or (token_id < 8 * len(mask) and bool(mask[token_id // 8] >> token_id % 8 & 1))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise PlanError(message)
