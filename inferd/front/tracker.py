"""The core's side of one generation: what it owes, what it gave, and how to go on when it dies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from inferd import errors
from inferd.errors import EngineDead, InferdError
from inferd.front.accumulator import Accumulator
from inferd.front.metrics import FrontMetrics
from inferd.front.resume import Replay, continue_single
from inferd.messages import AbortChoice, AddRequest, ChoiceOutput, Failure, PromptOutput, ToCore
from inferd.request import FinishReason, Request

MAX_RESUMES = 2  # a request that was there each time the core died may be why
ERRORS: Mapping[Failure, tuple[type[InferdError], str]] = MappingProxyType(
    {
        "INVALID_PARAMETER": (errors.InvalidParameter, "the engine cannot take this request"),
        "CONTEXT_LENGTH_EXCEEDED": (
            errors.ContextLengthExceeded,
            "the prompt is longer than the context that the engine has memory for since it started again",
        ),
        "INVALID_CONSTRAINT": (errors.InvalidConstraint, "the engine could not compile the constraint"),
        "CONSTRAINT_FAILED": (errors.ConstraintFailed, "no token was left that the request's constraint allows"),
        "QUEUE_TIMEOUT": (errors.QueueTimeout, "the request waited longer than its queue_timeout"),
        "DEADLINE_EXCEEDED": (errors.DeadlineExceeded, "the deadline passed before the generation ended"),
        "NUMERIC_ERROR": (errors.NumericError, "the model's output for this request was not finite"),
        "INTERNAL": (errors.InternalError, "the engine failed this request"),
    }
)


class TokenClock:
    """When tokens came. Zero: not yet."""

    def __init__(self, request: Request, metrics: FrontMetrics) -> None:
        self.first_token = self.last_token = 0.0
        self._arrival = request.arrival
        self._metrics = metrics
        self._last_of_choice = [0.0] * request.num_choices

    def count(self, choice: int, count: int, now: float) -> None:
        self._metrics.generation_tokens += count
        if not self.first_token:
            self.first_token = now
            self._metrics.time_to_first_token.observe(now - self._arrival)
        before = self._last_of_choice[choice]
        if before:
            self._metrics.inter_token_latency.observe((now - before) / count, count)
        self._last_of_choice[choice] = self.last_token = now


class Tracker:
    """One request's state between the core and its consumer. Called on the event loop only.

    `ended` is what the core knows: a choice that ended gets no more output. Everything received is kept, so that a
    core that dies can be replaced under the stream.
    """

    def __init__(
        self,
        request: Request,
        send: Callable[[ToCore], None],
        metrics: FrontMetrics,
        retry_after: Callable[[], float],
    ) -> None:
        self.request = request
        self.pending = Accumulator()
        self.prompt: PromptOutput | None = None
        self.error: InferdError | None = None
        self.clock = TokenClock(request, metrics)
        self._send = send
        self._metrics = metrics
        self._retry_after = retry_after
        self.received: list[list[int]] = [[] for _ in range(request.num_choices)]
        self.draft_tokens = self.accepted_draft_tokens = 0
        self._ended = [False] * request.num_choices
        self._replay: Replay | None = None
        self._resumes = 0

    @property
    def owed(self) -> bool:
        """Whether the core still owes output."""
        return not all(self._ended)

    def submit(self) -> None:
        self._send(AddRequest(self.request))

    def on_output(self, output: ChoiceOutput, now: float) -> None:
        """Take in what one step gave one choice."""
        choice = output.choice
        if output.error is not None:
            self.fail(self._error_of(output.error))
            return
        if output.prefilled:
            self.pending.note_prefill(output.prefilled)
            return
        if self._ended[choice]:
            if self._replay is not None and self._replay.is_first_output(choice):
                self._send(AbortChoice(self.request.key, choice))  # a replay runs the finished choices again
            return
        if output.prompt is not None and self.prompt is None:
            self.prompt = output.prompt
            self._metrics.on_scheduled(output.prompt.queue_s, output.prompt.prefill_s)
        self.draft_tokens += output.guessed
        self.accepted_draft_tokens += output.accepted
        tokens, logprobs = output.token_ids, output.logprobs
        if self._replay is not None:
            try:
                tokens, logprobs = self._replay.strip(choice, tokens, logprobs)
            except EngineDead as error:
                self.fail(error)
                return
        if tokens:
            self.received[choice] += tokens
            self.clock.count(choice, len(tokens), now)
        self._ended[choice] = output.finish is not None
        if tokens or output.finish is not None:
            self.pending.add(choice, tokens, logprobs, output.finish)

    def on_lost(self) -> None:
        """The core died. Who was there too often ends here, the others wait for its successor."""
        self._resumes += 1
        if self._resumes > MAX_RESUMES:
            self.fail(EngineDead(f"the engine died {self._resumes} times under this request", retry_after_s=1.0))

    def on_ready(self, max_context_tokens: int) -> None:
        """Hand the new core what is left to do."""
        if not self.owed:
            return
        request = self.request
        if request.num_choices == 1:
            request = continue_single(request, self.received[0], self.prompt is not None)
        elif any(self.received):
            self._replay = Replay(self.received)
        if len(request.prompt_token_ids) >= max_context_tokens:
            self.fail(EngineDead("the engine died, and its successor has too little memory for this request"))
            return
        self._metrics.resumed_requests += 1
        self._send(AddRequest(request))

    def fail(self, error: InferdError) -> None:
        """End with an error, which the consumer meets after what is pending."""
        if self.owed:
            self.error = error
            self.abort()
            self.pending.wake()

    def finish_aborted(self) -> bool:
        """End what runs, with what it has. False when nothing ran any more."""
        if not self.owed:
            return False
        for choice, ended in enumerate(self._ended):
            if not ended:
                self.pending.add(choice, [], [], FinishReason.ABORTED)
        self.abort()
        return True

    def end_choice(self, choice: int) -> None:
        """The consumer has enough of this choice."""
        if not self._ended[choice]:
            self._ended[choice] = True
            self._send(AbortChoice(self.request.key, choice))

    def abort(self) -> None:
        """The consumer has enough of everything; idempotent."""
        if self.owed:
            self._ended = [True] * len(self._ended)
            self._send(AbortChoice(self.request.key))

    def _error_of(self, failure: Failure) -> InferdError:
        cls, message = ERRORS[failure]
        retry = self._retry_after() if cls is errors.QueueTimeout else None
        return cls(message, retry_after_s=retry)
