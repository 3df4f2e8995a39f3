"""Guesses of the next tokens that cost no model, checked in the step that computes the token before them.

Prompt lookup (Saxena 2023): what followed the last tokens the last time they occurred in prompt or output is proposed
again. A step draws a token at each guessed place as well; those that agree are kept (Leviathan et al. 2023). Since a
draw depends on logits and position alone, the output is what it would have been without, token by token.

A guess's row is not free: a step with n sequences takes about as long as n + FREE_ROWS rows, so a guess must be
right more often than n / (n + FREE_ROWS) to pay. Each sequence keeps its own rate, and rests while it is below.

A prompt is read as it is computed: a step reads as many tokens as it computes and CATCH_UP more, for those that were
found in the prefix cache. Until all of a sequence is read, nothing is guessed.
"""

from __future__ import annotations

from inferd.config import SpeculativeConfig
from inferd.scheduler.draft import Draft
from inferd.scheduler.roster import Roster
from inferd.sequence import Sequence, Speculator
from inferd.step import PlanItem

FREE_ROWS = 4  # rows that take as long as reading the weights: an estimate for CPUs
FIRST_ACCEPTANCE = 0.6  # of a sequence that nothing is known of
SMOOTHING = 0.25  # weight of the newest step
FIRST_REST, LONGEST_REST = 16, 512  # tokens
CATCH_UP = 512  # tokens: less than a millisecond


class PromptLookup:
    """One sequence's guesses, and whether they pay. It must read() what it is to guess from, each token once."""

    def __init__(self, config: SpeculativeConfig) -> None:
        self._config = config
        self._follows: dict[tuple[int, ...], int] = {}  # run of tokens -> the position after its last occurrence
        self._num_read = 0
        self._length = min(2, config.num_speculative_tokens)
        self._acceptance = FIRST_ACCEPTANCE
        self._rest = FIRST_REST
        self._rests_until = 0  # this many tokens

    def guess(self, tokens: list[int], most: int, num_sequences: int) -> list[int]:
        """At most `most` guesses of what follows tokens, in a step of num_sequences; none while that does not pay."""
        if len(tokens) < self._rests_until:
            return []
        if self._acceptance < num_sequences / (num_sequences + FREE_ROWS):
            self._rests_until = len(tokens) + self._rest
            self._rest = min(2 * self._rest, LONGEST_REST)
            self._acceptance, self._length = FIRST_ACCEPTANCE, 1
            return []
        start = self._find(tokens) if self._num_read == len(tokens) else None
        if start is None:
            return []
        period, guesses = len(tokens) - start, tokens[start : start + min(self._length, most)]
        while len(guesses) < min(self._length, most):  # the run reaches to the end: it goes on repeating itself
            guesses.append(guesses[len(guesses) - period])
        return guesses

    def note(self, guessed: int, accepted: int) -> None:
        """What a step made of the last guesses."""
        self._acceptance += SMOOTHING * (accepted / guessed - self._acceptance)
        if accepted == guessed:
            self._length = min(2 * self._length, self._config.num_speculative_tokens)
            self._rest = FIRST_REST
        else:
            self._length = max(accepted, 1)

    def read(self, tokens: list[int], most: int) -> int:
        """Take in the runs that end before the last token, which is what is looked up, but `most` tokens at a time.
        Returns how many it took."""
        sizes = range(self._config.prompt_lookup_min, self._config.prompt_lookup_max + 1)
        first, self._num_read = self._num_read, min(len(tokens), self._num_read + most)
        for end in range(max(first, 1), self._num_read):
            for size in sizes:
                if size <= end:
                    self._follows[tuple(tokens[end - size : end])] = end
        return self._num_read - first

    def _find(self, tokens: list[int]) -> int | None:
        """The position after an earlier occurrence of the longest run at the end of tokens."""
        for size in range(self._config.prompt_lookup_max, self._config.prompt_lookup_min - 1, -1):
            start = self._follows.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if start is not None:
                return start
        return None


def add_guesses(draft: Draft, roster: Roster, config: SpeculativeConfig) -> None:
    """Guesses behind the tokens of a step that has no prompt, as far as budget and blocks go: nobody is preempted for
    one, and each running sequence keeps a block to grow into."""
    plain: list[PlanItem] = []
    for item in draft.single:
        sequence = roster.sequences[item.seq_id]
        # The token after the last guess must still be one that may come.
        most = min(draft.budget, sequence.max_tokens - sequence.num_tokens - 1)
        may_guess = most > 0 and item.choices  # else tokens that are known already follow: it is computed again
        guesses = guesses_for(sequence, most, len(draft.single), config) if may_guess else []
        blocks = roster.kv.stretch(sequence, len(guesses), len(roster.running)) if guesses else []
        guesses = guesses[: sequence.num_slots - sequence.num_tokens]
        if not guesses:
            plain.append(item)
            continue
        token_ids, new_block_ids = item.token_ids + guesses, item.new_block_ids + blocks
        draft.longer.append(PlanItem(item.seq_id, item.start, token_ids, new_block_ids, item.choices, len(guesses)))
        draft.budget -= len(guesses)
    draft.single = plain


def read_tokens(draft: Draft, roster: Roster, config: SpeculativeConfig) -> None:
    """Have the sequences of a step read, as far as its share goes: those with most to read come last."""
    items = draft.single + draft.longer
    left = CATCH_UP + sum([len(item.token_ids) for item in items])
    for item in items:
        sequence = roster.sequences[item.seq_id]
        if (speculator := speculator_of(sequence, config)) is not None:
            left -= speculator.read(sequence.token_ids, left)


def guesses_for(sequence: Sequence, most: int, num_sequences: int, config: SpeculativeConfig) -> list[int]:
    """None for a prompt."""
    if sequence.num_computed_tokens < sequence.num_prompt_tokens:
        return []
    speculator = speculator_of(sequence, config)
    return [] if speculator is None else speculator.guess(sequence.token_ids, most, num_sequences)


def speculator_of(sequence: Sequence, config: SpeculativeConfig) -> Speculator | None:
    """None where the next draw depends on the tokens before it in another way than by the logits."""
    if sequence.matcher is not None or sequence.request.sampling.needs_history:
        return None
    if sequence.speculator is None:
        sequence.speculator = PromptLookup(config)
    return sequence.speculator
