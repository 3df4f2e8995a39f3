"""Committer: takes what the executor computed into the sequences, and says what each choice got of it."""

from __future__ import annotations

from inferd.messages import ChoiceOutput, Failure, PromptOutput
from inferd.request import FinishReason
from inferd.scheduler.registry import Registry
from inferd.scheduler.requests import ending, finish_reason, length_reason, progress, prompt_output
from inferd.scheduler.roster import Roster
from inferd.sequence import Sequence
from inferd.step import NOT_FINITE, PlanItem, SampledToken, SequenceResult, StepPlan, StepResult, TokenLogprobs

NO_LOGPROBS: list[TokenLogprobs] = []  # shared by all outputs without; outputs are frozen


class Committer:
    def __init__(self, registry: Registry, roster: Roster) -> None:
        self._registry = registry
        self._roster = roster
        self.draft_tokens = 0  # checked so far
        self.accepted_draft_tokens = 0

    def commit(self, plan: StepPlan, result: StepResult, now: float) -> list[ChoiceOutput]:
        """Raises ValueError when the result is not that of the plan, item by item."""
        if result.step != plan.step or len(result.results) != len(plan.items):
            raise ValueError(
                f"{len(result.results)} results of step {result.step} for {len(plan.items)} of {plan.step}"
            )
        outputs: list[ChoiceOutput] = []
        sequences, publish, step = self._roster.sequences, self._roster.kv.publish, plan.step
        for item, answer in zip(plan.items, result.results, strict=True):
            seq_id, choices, samples = item.seq_id, item.choices, answer.samples
            if seq_id != answer.seq_id or len(choices) + item.guesses != len(samples):
                raise ValueError(f"{len(samples)} samples of sequence {answer.seq_id} answer {item}")
            sequence = sequences.get(seq_id)
            if sequence is None or sequence.in_flight != step:
                continue  # it ended or was preempted while it was computed
            sequence.in_flight, sequence.ahead = sequence.ahead, 0
            if item.guesses:
                self._commit_guesses(sequence, item, samples, outputs)
                continue
            end = sequence.num_computed_tokens = item.start + len(item.token_ids)
            if end >= sequence.publish_at:
                publish(sequence)
            # Nearly all of a large step: one token, which ends nothing.
            if end < sequence.plain_until:
                token_id = samples[0].token_id
                if token_id >= 0 and token_id not in sequence.stop_token_ids:
                    sequence.token_ids.append(token_id)
                    outputs.append(ChoiceOutput(sequence.key, choices[0], [token_id], NO_LOGPROBS))
                    continue
            if item.start < sequence.num_prompt_tokens:
                self._commit_prompt(sequence, item, answer, now, outputs)
            elif samples:
                self._commit_token(sequence, samples[0], outputs)
        return outputs

    def _commit_prompt(
        self,
        sequence: Sequence,
        item: PlanItem,
        answer: SequenceResult,
        now: float,
        outputs: list[ChoiceOutput],
    ) -> None:
        """A chunk with prompt tokens; the last one of them brings the first token of every choice."""
        live = self._registry.live[sequence.request.key]
        pairs = zip(item.choices, answer.samples, strict=True)
        samples = [sample for choice, sample in pairs if choice in sequence.choices]  # of those that are left
        live.vector = answer.vector
        if sequence.wants_prompt_logprobs:
            if item.start == 0:
                live.prompt_logprobs.clear()  # of an attempt that was preempted
            live.prompt_logprobs += answer.prompt_logprobs
        if sequence.num_computed_tokens < sequence.num_tokens:
            if sequence.request.prefill_progress and not live.prompt_sent:
                outputs.append(progress(sequence))
            return
        prompt = prompt_output(live, sequence, now)
        if not samples:
            error: Failure | None = "NUMERIC_ERROR" if live.request.pooling is not None and not live.vector else None
            finish = length_reason(sequence) if error is None else None
            for choice in list(live.choices):
                outputs.append(ending(live, choice, finish, error, prompt))
                self._registry.end(live, choice)
                prompt = None
        elif len(samples) == 1:
            self._commit_token(sequence, samples[0], outputs, prompt)
        else:
            self._commit_fork(sequence, samples, prompt, outputs)

    def _commit_fork(
        self, parent: Sequence, samples: list[SampledToken], prompt: PromptOutput | None, outputs: list[ChoiceOutput]
    ) -> None:
        """The prompt of several choices is computed: one sequence each from now on, all on the prompt's blocks."""
        live = self._registry.live[parent.request.key]
        children = [self._roster.fork(parent, choice) for choice in parent.choices[1:]]
        family = [parent, *children]
        for choice, sequence, sample in zip(parent.choices, family, samples, strict=True):
            live.choices[choice] = sequence
            append_sample(sequence, sample)
        self._roster.seat_forks(parent, children)
        for sequence, sample in zip(family, samples, strict=True):
            self._report(sequence, [sample], outputs, prompt)
            prompt = None

    def _commit_token(
        self, sequence: Sequence, sample: SampledToken, outputs: list[ChoiceOutput], prompt: PromptOutput | None = None
    ) -> None:
        """One more token for a sequence of one choice, its last one perhaps, or none."""
        append_sample(sequence, sample)
        self._report(sequence, [sample], outputs, prompt)
        if sequence.matcher is None and sequence.request.logprobs is None:
            sequence.plain_until = sequence.max_tokens - 1

    def _commit_guesses(
        self, sequence: Sequence, item: PlanItem, samples: list[SampledToken], outputs: list[ChoiceOutput]
    ) -> None:
        """The first token that was drawn, and one more for each guess that was drawn itself. The K and V of the others
        are computed again, with the tokens that came instead."""
        guesses = item.token_ids[-item.guesses :]
        accepted = num_equal(guesses, samples)
        assert sequence.speculator is not None
        sequence.speculator.note(item.guesses, accepted)
        taken: list[SampledToken] = []
        for sample in samples[: accepted + 1]:
            taken.append(sample)
            append_sample(sequence, sample)
            if sample.token_id < 0 or finish_reason(sequence) is not None:
                break
        accepted = len(taken) - 1
        self.draft_tokens += item.guesses
        self.accepted_draft_tokens += accepted
        sequence.num_computed_tokens = item.start + 1 + accepted
        if sequence.num_computed_tokens >= sequence.publish_at:
            self._roster.kv.publish(sequence)
        self._report(sequence, taken, outputs, None, item.guesses)

    def _report(
        self,
        sequence: Sequence,
        samples: list[SampledToken],
        outputs: list[ChoiceOutput],
        prompt: PromptOutput | None,
        guessed: int = 0,
    ) -> None:
        """Say what the choice got; it ends if the last token was its last, or if there is none for it."""
        failed = samples[-1].token_id < 0
        if failed:
            self._roster.kv.withdraw(sequence)
        good = samples[:-1] if failed else samples
        logprobs = [sample.logprobs for sample in good if sample.logprobs is not None]
        finish, error = without_token(sequence, samples[-1]) if failed else (finish_reason(sequence), None)
        key, choice, token_ids = sequence.request.key, sequence.choices[0], [sample.token_id for sample in good]
        accepted = len(samples) - 1
        outputs.append(ChoiceOutput(key, choice, token_ids, logprobs, finish, error, prompt, 0, guessed, accepted))
        if finish is not None or error is not None:
            self._registry.end(self._registry.live[key], choice)


def num_equal(guesses: list[int], samples: list[SampledToken]) -> int:
    """How many of the guesses, from the first on, are what was drawn."""
    for count, (guess, sample) in enumerate(zip(guesses, samples, strict=False)):
        if guess != sample.token_id:
            return count
    return len(guesses)


def append_sample(sequence: Sequence, sample: SampledToken) -> None:
    """Take the token, if there is one."""
    if sample.token_id < 0:
        return
    sequence.token_ids.append(sample.token_id)
    if sequence.matcher is not None and sample.token_id not in sequence.stop_token_ids:
        sequence.matcher.advance(sample.token_id)


def without_token(sequence: Sequence, sample: SampledToken) -> tuple[FinishReason | None, Failure | None]:
    """How a choice ends for which no token could be drawn: (finish, error)."""
    if sample.token_id == NOT_FINITE:
        return None, "NUMERIC_ERROR"
    if sequence.matcher is not None and sequence.matcher.complete:
        return FinishReason.EOS, None  # only the end was left, and the end was ruled out
    return None, "CONSTRAINT_FAILED"
