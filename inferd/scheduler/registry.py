"""Registry: the live requests, from their arrival to the end of their last choice, and the clocks they run against."""

from __future__ import annotations

from inferd.messages import ChoiceOutput, Failure
from inferd.request import FinishReason, Request
from inferd.scheduler.limits import StepLimits
from inferd.scheduler.requests import LiveRequest, ending, first_sequence, prompt_output, rejection
from inferd.scheduler.roster import Roster
from inferd.scheduler.timers import TimerKind, Timers
from inferd.sequence import Matcher


class Registry:
    """live maps keys to requests that have at least one choice left."""

    def __init__(self, roster: Roster, limits: StepLimits) -> None:
        self.live: dict[int, LiveRequest] = {}
        self._roster = roster
        self._limits = limits
        self._timers = Timers()
        self._unreported: list[ChoiceOutput] = []

    @property
    def has_work(self) -> bool:
        """Whether there is something to schedule or to report."""
        return bool(self.live or self._unreported)

    def add(self, request: Request, matcher: Matcher | None) -> None:
        """Queue a request; one that can never run is reported by the next expired().

        Raises ValueError when a request of that key is live.
        """
        if request.key in self.live:
            raise ValueError(f"request key {request.key} is live already")
        if (reason := rejection(request, self._limits)) is not None:
            self.refuse(request, reason)
            return
        account = self._roster.accounts.enter(request.tenant)
        sequence = first_sequence(self._roster.next_seq_id(), request, account, self._limits, matcher)
        self.live[request.key] = LiveRequest(request, dict.fromkeys(range(request.num_choices), sequence))
        self._timers.start(request)
        self._roster.enqueue(sequence)

    def refuse(self, request: Request, reason: Failure) -> None:
        """Have a request reported that cannot run."""
        choices = range(max(request.num_choices, 1))
        self._unreported += [ChoiceOutput(request.key, choice, [], [], error=reason) for choice in choices]

    def abort(self, key: int, choice: int | None) -> None:
        live = self.live.get(key)
        if live is not None:
            for ended in list(live.choices) if choice is None else [choice]:
                if ended in live.choices:
                    self.end(live, ended)

    def expired(self, now: float) -> list[ChoiceOutput]:
        for key, kind in self._timers.due(now):
            live = self.live.get(key)
            if live is not None and not (kind is TimerKind.QUEUE_DEADLINE and live.was_scheduled):
                self._unreported += self._expire(live, kind, now)
        outputs, self._unreported = self._unreported, []
        return outputs

    def end(self, live: LiveRequest, choice: int) -> None:
        """The choice is over: give back what it alone holds, and with the last choice the request's clocks."""
        sequence = live.choices.pop(choice)
        if any(other is sequence for other in live.choices.values()):
            self._roster.narrow(sequence, choice)
        else:
            self._roster.release(sequence)
        if not live.choices:
            del self.live[live.request.key]
            self._timers.cancel(live.request)

    def _expire(self, live: LiveRequest, kind: TimerKind, now: float) -> list[ChoiceOutput]:
        outputs = []
        for choice, sequence in list(live.choices.items()):
            if kind is TimerKind.TIME_LIMIT:
                prompt = prompt_output(live, sequence, now)
                outputs.append(ending(live, choice, FinishReason.TIME_LIMIT, prompt=prompt))
            else:
                reason: Failure = "QUEUE_TIMEOUT" if kind is TimerKind.QUEUE_DEADLINE else "DEADLINE_EXCEEDED"
                outputs.append(ending(live, choice, error=reason))
            self.end(live, choice)
        return outputs
