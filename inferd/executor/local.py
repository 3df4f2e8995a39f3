"""The executors of one device: the worker lives in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from inferd.executor.base import ExecutorDead, ExecutorInfo
from inferd.executor.device_worker import DeviceWorker, LaunchedStep
from inferd.executor.encoder_worker import EncoderWorker
from inferd.executor.worker import Worker
from inferd.step import RankTimings, StepPlan, StepResult


class LocalExecutor:
    """Implements inferd.executor.base.Executor."""

    def __init__(self, worker: Worker | EncoderWorker, info: ExecutorInfo) -> None:
        self._worker: Worker | EncoderWorker | None = worker
        self.info = info
        self._submitted: deque[StepPlan] = deque()

    def submit(self, plan: StepPlan) -> None:
        self._submitted.append(plan)

    def collect(self) -> StepResult:
        return self.execute(self._submitted.popleft())

    def execute(self, plan: StepPlan) -> StepResult:
        """Raises ExecutorDead after shutdown and when the device fails, out of memory included: its state is lost."""
        if self._worker is None:
            raise ExecutorDead("the executor was shut down")
        try:
            return self._worker.execute(plan)
        except (RuntimeError, MemoryError) as error:
            self._worker = None
            raise ExecutorDead(f"step {plan.step} failed: {error}") from error

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        if isinstance(self._worker, Worker):
            self._worker.give_back(blocks)

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        """The worker dies with this process."""

    def timings(self) -> list[RankTimings]:
        return []

    def shutdown(self) -> None:
        self._worker = None


class DeviceExecutor:
    """Implements inferd.executor.base.Executor: submit enqueues a step on the device, collect waits for its results."""

    def __init__(self, worker: DeviceWorker, info: ExecutorInfo) -> None:
        self._worker: DeviceWorker | None = worker
        self.info = info
        self._launched: deque[LaunchedStep] = deque()

    def submit(self, plan: StepPlan) -> None:
        """Raises ExecutorDead like collect."""
        worker = self._alive()
        try:
            self._launched.append(worker.launch(plan))
        except (RuntimeError, MemoryError) as error:
            raise self._die(plan, error) from error

    def collect(self) -> StepResult:
        """Raises ExecutorDead after shutdown and when the device fails, out of memory included: its state is lost."""
        worker, step = self._alive(), self._launched.popleft()
        try:
            return worker.finish(step)
        except (RuntimeError, MemoryError) as error:
            raise self._die(step.plan, error) from error

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan)
        return self.collect()

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        """An accelerator's memory is the pool's as long as it lives."""

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        """The worker dies with this process."""

    def timings(self) -> list[RankTimings]:
        return []

    def shutdown(self) -> None:
        self._worker = None

    def _alive(self) -> DeviceWorker:
        if self._worker is None:
            raise ExecutorDead("the executor was shut down")
        return self._worker

    def _die(self, plan: StepPlan, error: Exception) -> ExecutorDead:
        self._worker = None
        return ExecutorDead(f"step {plan.step} failed: {error}")
