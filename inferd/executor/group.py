"""The executor of many workers: plans go to every rank, the last stage's first rank answers. Loads no torch."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from inferd.config import ParallelConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorDead, ExecutorInfo
from inferd.executor.links import RankLinks
from inferd.executor.wire import DumpStacks, GiveBack, Loaded, RunStep, StepDone, StepTime, StepTimes, Stop
from inferd.parallel.placement import Placement
from inferd.step import RankTimings, StepPlan, StepResult

logger = logging.getLogger(__name__)


class Processes(Protocol):
    """Whoever started the workers."""

    def endings(self) -> str:
        """How those that have ended did, for people."""

    def stop(self) -> None:
        """See to it that none is left, after they were told to leave."""

    def kill(self) -> None: ...


class GroupExecutor:
    """Implements inferd.executor.base.Executor over links to workers that are ready."""

    def __init__(
        self,
        info: ExecutorInfo,
        loaded: list[Loaded],
        links: RankLinks,
        processes: Processes,
        parallel: ParallelConfig,
    ) -> None:
        self.info = info
        self.loaded = loaded  # what each rank said of itself
        self.on_times: Callable[[int, list[StepTime]], None] = lambda rank, times: None  # for whoever draws a trace
        self._links = links
        self._processes = processes
        self._tensor_size = parallel.tensor_parallel_size
        self._timeout_s = parallel.step_timeout_s
        self._results: deque[StepResult] = deque()
        self._timings: dict[int, RankTimings] = {}
        self._is_running = True

    def submit(self, plan: StepPlan) -> None:
        self._links.broadcast(RunStep(plan))

    def collect(self) -> StepResult:
        """Raises ExecutorDead when a worker died or the step takes longer than step_timeout_s; all are ended then."""
        if not self._is_running:
            raise ExecutorDead("the executor was shut down")
        began = time.monotonic()
        try:
            while not self._results:
                self._take(began + self._timeout_s - time.monotonic())
        except TimeoutError:
            self._log_stacks()
            self._die()
            raise ExecutorDead(f"a step took longer than {self._timeout_s:g} s; the workers were ended") from None
        except ExecutorDead as error:
            endings = self._processes.endings()
            self._die()
            raise ExecutorDead(f"{error} ({endings})" if endings else str(error)) from None
        return self._results.popleft()

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan)
        return self.collect()

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        self._links.broadcast(GiveBack(blocks))

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        self._links.watch(on_death)

    def timings(self) -> list[RankTimings]:
        return list(self._timings.values())

    def shutdown(self) -> None:
        if self._is_running:
            self._is_running = False
            self._links.broadcast(Stop())
            self._processes.stop()
            self._links.close()

    def _take(self, timeout_s: float) -> None:
        rank, message = self._links.receive(max(timeout_s, 0.0))
        match message:
            case StepDone(result):
                self._results.append(result)
            case StepTimes(times):
                self._timings[rank] = self._add(rank, times)
                self.on_times(rank, times)
            case _:
                logger.error("rank %d sent %s during a step", rank, type(message).__name__)

    def _add(self, rank: int, times: list[StepTime]) -> RankTimings:
        before = self._timings.get(rank) or RankTimings(rank, Placement(rank, self._tensor_size).stage, 0, 0.0, 0.0)
        waited = sum(each.wait_s for each in times)
        computed = sum(each.ended - each.began for each in times) - waited
        return RankTimings(
            rank, before.stage, before.steps + len(times), before.compute_s + computed, before.wait_s + waited
        )

    def _log_stacks(self) -> None:
        """A collective that hangs shows in the stacks of those that wait in it, and in who does not answer."""
        with suppress(ExecutorDead, StartupError):
            stacks = self._links.stacks(DumpStacks())
            for rank, text in sorted(stacks.items()):
                logger.error("rank %d is here:\n%s", rank, text)
            silent = sorted(set(range(self._links.size)) - set(stacks))
            if silent:
                logger.error("ranks that do not answer: %s", ", ".join(map(str, silent)))

    def _die(self) -> None:
        self._is_running = False
        self._processes.kill()
        self._links.close()
