"""EngineLoop: receive, schedule, execute, commit, send. The only writer of scheduler and executor."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from queue import Empty

from inferd.allocator import return_freed_memory
from inferd.core.channel import FrontChannel, FrontGone, WorkerLost
from inferd.core.constraints import ConstraintBuilder, MatcherBuilt
from inferd.core.reclaim import Reclaimer
from inferd.executor.base import Executor
from inferd.messages import (
    AbortChoice,
    AddRequest,
    ChoiceOutput,
    ClearPrefixCache,
    PrefixCacheCleared,
    Shutdown,
    StepOutputs,
    ToCore,
    Vocabulary,
)
from inferd.request import Request
from inferd.scheduler.scheduler import Scheduler
from inferd.sequence import Matcher
from inferd.step import RankTimings, StepPlan

logger = logging.getLogger(__name__)

SETTLE_AFTER_IDLE_S = 1.0
TRIM_INTERVAL_S = 5.0  # it takes a millisecond
TIMINGS_INTERVAL_S = 1.0
NO_TIMINGS: list[RankTimings] = []


class EngineLoop:
    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        channel: FrontChannel,
        reclaimer: Reclaimer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._channel = channel
        self._reclaimer = reclaimer
        self._clock = clock
        self._constraints = ConstraintBuilder(scheduler.limits.vocab_size, self._deliver)
        self._in_flight: deque[StepPlan] = deque()  # submitted, oldest first
        self._timings_sent = self._trimmed = clock()
        self._stats_due = False  # something changed that no step will report
        self._settled = True  # nothing ran since the books were audited and the steps' memory returned

    def run(self) -> None:
        """Serve until the front says Shutdown or is gone. Raises ExecutorDead, AuditError, or what a bug raises."""
        self._executor.watch(lambda error: self._channel.inbox.put(WorkerLost(error)))
        try:
            while self._receive():
                self._step()
        except FrontGone as error:
            logger.info("the front is gone: %s", error)
        finally:
            self._constraints.shutdown()

    def _step(self) -> None:
        outputs = self._submit(self._clock())
        if self._in_flight:
            self._settled = False
            result = self._executor.collect()
            now = self._clock()
            self._trim(now)
            self._reclaimer.run()
            outputs += self._scheduler.commit(self._in_flight.popleft(), result, now)
            if self._executor.info.pipeline_depth > 1:
                outputs += self._submit(now)  # the first stage waits for it: before the front gets its outputs
            self._stats_due = True
        if outputs or self._stats_due:
            self._stats_due = False
            self._send(outputs)

    def _submit(self, now: float) -> list[ChoiceOutput]:
        """Keep the executor's pipeline full, as far as there is something to compute. Returns what ended meanwhile."""
        outputs = self._scheduler.expired(now)
        while len(self._in_flight) < self._executor.info.max_in_flight:
            plan = self._scheduler.schedule(now)
            if plan is None:
                break
            self._in_flight.append(plan)
            self._executor.submit(plan)
        return outputs

    def _receive(self) -> bool:
        """Handle all that has arrived, waiting for something when there is nothing else to do. False: leave."""
        while True:
            try:
                message = self._next_message()
            except Empty:
                return True
            if message is None or isinstance(message, Shutdown):
                return False
            self._handle(message)

    def _next_message(self) -> ToCore | MatcherBuilt | WorkerLost | None:
        """Raises Empty when the loop has better to do than to wait."""
        inbox = self._channel.inbox
        if self._scheduler.has_work or self._in_flight or self._stats_due:
            return inbox.get_nowait()
        if not self._settled:
            try:
                return inbox.get(timeout=SETTLE_AFTER_IDLE_S)
            except Empty:
                self._scheduler.check()
                self._executor.give_back([])
                return_freed_memory()
                self._settled = True
        while True:
            try:
                return inbox.get(timeout=self._reclaimer.wait_s)
            except Empty:
                self._reclaimer.run()

    def _handle(self, message: ToCore | MatcherBuilt | WorkerLost) -> None:
        match message:
            case WorkerLost(error):
                raise error
            case AddRequest(request) if request.constraint is not None:
                self._constraints.build(request)
            case AddRequest(request):
                self._add(request, None)
            case MatcherBuilt(request, matcher):
                self._add_built(request, matcher)
            case AbortChoice(key, choice):
                if not self._constraints.abort(key, choice):
                    self._scheduler.abort(key, choice)
                self._stats_due = True
            case Vocabulary():
                self._constraints.set_vocabulary(message)
            case ClearPrefixCache(token, salt):
                self._channel.send(PrefixCacheCleared(token, self._scheduler.clear_prefix_cache(salt)))
            case _:
                logger.error("message %s is not for the loop", type(message).__name__)

    def _add(self, request: Request, matcher: Matcher | None) -> None:
        try:
            self._scheduler.add(request, matcher)
        except ValueError as error:
            logger.error("request refused: %s", error, extra={"request_id": request.request_id})

    def _deliver(self, built: MatcherBuilt) -> None:
        """Called on the builder's threads."""
        self._channel.inbox.put(built)

    def _add_built(self, request: Request, matcher: Matcher | None) -> None:
        """Take a request whose matcher was made, and what was aborted of it meanwhile."""
        aborts = self._constraints.take_aborts(request.key)
        if matcher is None:
            self._scheduler.refuse(request, "INVALID_CONSTRAINT")
            return
        if None not in aborts:
            self._add(request, matcher)
        for choice in aborts:
            self._scheduler.abort(request.key, choice)

    def _send(self, outputs: list[ChoiceOutput]) -> None:
        """One frame; more when the outputs do not fit one. An output that fits none fails its choice alone."""
        try:
            self._channel.send(StepOutputs(outputs, self._scheduler.stats(), self._timings()))
        except ValueError as error:
            if len(outputs) > 1:
                half = len(outputs) // 2
                self._send(outputs[:half])
                self._send(outputs[half:])
                return
            logger.error("an output is too large to send: %s", error)
            key, choice = outputs[0].key, outputs[0].choice
            self._scheduler.abort(key, choice)
            self._send([ChoiceOutput(key, choice, [], [], error="INTERNAL")])

    def _trim(self, now: float) -> None:
        """Now and then, give back the holes that steps of many sizes leave in the heap."""
        if now - self._trimmed >= TRIM_INTERVAL_S:
            self._trimmed = now
            return_freed_memory()

    def _timings(self) -> list[RankTimings]:
        """The ranks' timings, now and then; else nothing."""
        now = self._clock()
        if now - self._timings_sent < TIMINGS_INTERVAL_S:
            return NO_TIMINGS
        self._timings_sent = now
        return self._executor.timings()
