"""LiveRequest: what the choices of one admitted request share. Pure functions around its beginning and its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferd.account import Account
from inferd.messages import ChoiceOutput, Failure, PromptOutput
from inferd.request import FinishReason, Request
from inferd.scheduler.limits import StepLimits
from inferd.sequence import Matcher, Sequence
from inferd.step import NewSequence, TokenLogprobs


@dataclass(slots=True, eq=False)
class LiveRequest:
    """choices maps each choice that has not ended to its sequence: to one and the same before the fork."""

    request: Request
    choices: dict[int, Sequence]
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)  # of the positions computed so far
    prompt_sent: bool = False
    vector: bytes = b""  # of a pooled prompt

    def sequences(self) -> list[Sequence]:
        """Each once."""
        return list({sequence.seq_id: sequence for sequence in self.choices.values()}.values())

    @property
    def was_scheduled(self) -> bool:
        return any(sequence.first_scheduled is not None for sequence in self.choices.values())


def rejection(request: Request, limits: StepLimits) -> Failure | None:
    """The reason why a request can never run. The front has checked all this: a second line, so that the core lives."""
    prompt = request.prompt_token_ids
    if not prompt or request.num_choices < 1 or not 0 <= request.resumed_tokens < len(prompt):
        return "INVALID_PARAMETER"
    if min(prompt) < 0 or max(prompt) >= limits.vocab_size:
        return "INVALID_PARAMETER"
    if len(prompt) > limits.max_context:
        return "CONTEXT_LENGTH_EXCEEDED"
    return None


def first_sequence(
    seq_id: int, request: Request, account: Account, limits: StepLimits, matcher: Matcher | None = None
) -> Sequence:
    """The sequence that computes the prompt for all choices."""
    num_prompt = len(request.prompt_token_ids)
    max_tokens = min(num_prompt - request.resumed_tokens + request.stop.max_tokens, limits.max_context)
    # A literal is one object for all, which a step of many sequences finds in the cache.
    choices = (0,) if request.num_choices == 1 else tuple(range(request.num_choices))
    return Sequence(
        seq_id=seq_id,
        request=request,
        account=account,
        choices=choices if max_tokens > num_prompt else (),
        token_ids=list(request.prompt_token_ids),
        num_prompt_tokens=num_prompt,
        max_tokens=max_tokens,
        stop_token_ids=frozenset(request.stop.eos_token_ids + request.stop.stop_token_ids),
        matcher=matcher,
    )


def forked_sequence(seq_id: int, parent: Sequence, choice: int) -> Sequence:
    """Another choice of a prompt that is computed; it has no blocks yet."""
    return Sequence(
        seq_id=seq_id,
        request=parent.request,
        account=parent.account,
        choices=(choice,),
        token_ids=list(parent.token_ids),
        num_prompt_tokens=parent.num_prompt_tokens,
        max_tokens=parent.max_tokens,
        stop_token_ids=parent.stop_token_ids,
        matcher=parent.matcher.fork() if parent.matcher is not None else None,
        num_cached_tokens=parent.num_cached_tokens,
        first_scheduled=parent.first_scheduled,
    )


def announcement(sequence: Sequence) -> NewSequence:
    """All the executor needs to know of a sequence, as of now."""
    request = sequence.request
    return NewSequence(
        seq_id=sequence.seq_id,
        block_ids=list(sequence.block_ids),
        sampling=request.sampling,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs if sequence.wants_prompt_logprobs else None,
        history=list(sequence.token_ids) if request.sampling.needs_history else [],
        num_output_tokens=sequence.num_output_tokens,
        min_tokens=request.stop.min_tokens,
        blocked_token_ids=tuple(sequence.stop_token_ids) if request.stop.min_tokens else (),
        pooling=request.pooling,
    )


def finish_reason(sequence: Sequence) -> FinishReason | None:
    """Why the choice ends with its last token, if it does. Before min_tokens no stop token can be sampled."""
    token_id = sequence.token_ids[-1]
    if token_id in sequence.stop_token_ids:
        return FinishReason.EOS if token_id in sequence.request.stop.eos_token_ids else FinishReason.STOP_TOKEN
    if sequence.matcher is not None and sequence.matcher.complete:
        return FinishReason.EOS  # the end-of-text token is all that could follow
    return length_reason(sequence) if sequence.num_tokens >= sequence.max_tokens else None


def length_reason(sequence: Sequence) -> FinishReason:
    """For a sequence of max_tokens: whether the caller's limit or the context ends it."""
    if sequence.num_output_tokens >= sequence.request.stop.max_tokens:
        return FinishReason.MAX_TOKENS
    return FinishReason.CONTEXT_FULL


def prompt_output(live: LiveRequest, sequence: Sequence, now: float) -> PromptOutput | None:
    """What the first output of a request says of its prompt; None afterwards."""
    if live.prompt_sent:
        return None
    live.prompt_sent = True
    scheduled = now if sequence.first_scheduled is None else sequence.first_scheduled
    logprobs, live.prompt_logprobs = live.prompt_logprobs, []
    queue_s, prefill_s = scheduled - live.request.arrival, now - scheduled
    return PromptOutput(sequence.num_cached_tokens, queue_s, prefill_s, logprobs, live.vector)


def progress(sequence: Sequence) -> ChoiceOutput:
    """How much of its prompt a sequence has."""
    return ChoiceOutput(sequence.request.key, 0, [], [], prefilled=sequence.num_computed_tokens)


def ending(
    live: LiveRequest,
    choice: int,
    finish: FinishReason | None = None,
    error: Failure | None = None,
    prompt: PromptOutput | None = None,
) -> ChoiceOutput:
    """The last output of a choice, without a token."""
    return ChoiceOutput(live.request.key, choice, [], [], finish, error, prompt)
