"""The ranks of a model as threads of this process: the production workers and groups without the seconds that processes
take to start."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue

import torch

from inferd.checkpoint import Checkpoint, open_checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorDead, ExecutorInfo
from inferd.executor.build import build_worker, executor_info, kv_room, load_model, rehearsal, rehearse
from inferd.executor.kv_plan import plan_kv
from inferd.executor.worker import Worker
from inferd.models.registry import check_checkpoint
from inferd.models.spec import ModelSpec
from inferd.parallel.context import connect, join_store, open_store
from inferd.parallel.placement import Placement
from inferd.step import RankTimings, StepPlan, StepResult

HOST = "127.0.0.1"
TIMEOUT_S = 30.0
FAILURES = (RuntimeError, ValueError, AssertionError, StartupError)


class ThreadExecutor:
    """Implements inferd.executor.base.Executor. shutdown() ends the threads."""

    def __init__(self, config: EngineConfig) -> None:
        parallel = config.parallel
        self._config = config
        self._placements = [
            Placement(rank, parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
            for rank in range(parallel.world_size)
        ]
        self._plans: list[SimpleQueue[StepPlan | None]] = [SimpleQueue() for _ in self._placements]
        self._results: SimpleQueue[StepResult | BaseException] = SimpleQueue()
        self._in_flight: deque[int] = deque()
        self._server = open_store(HOST, TIMEOUT_S)
        checkpoint = open_checkpoint(Path(config.model.path))
        spec = check_checkpoint(checkpoint)
        infos: SimpleQueue[ExecutorInfo | BaseException] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, args=(placement, checkpoint, spec, infos.put), daemon=True)
            for placement in self._placements
        ]
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            info = infos.get()
            if isinstance(info, BaseException):
                raise info
        self.info = info

    def submit(self, plan: StepPlan) -> None:
        self._in_flight.append(plan.step)
        for plans in self._plans:
            plans.put(plan)

    def collect(self) -> StepResult:
        result = self._results.get(timeout=TIMEOUT_S)
        if isinstance(result, BaseException):
            raise ExecutorDead(str(result)) from result
        assert result.step == self._in_flight.popleft()
        return result

    def execute(self, plan: StepPlan) -> StepResult:
        self.submit(plan)
        return self.collect()

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        """Ranks of one process are too short-lived for it."""

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        """Threads do not die alone."""

    def timings(self) -> list[RankTimings]:
        return []

    def shutdown(self) -> None:
        for plans in self._plans:
            plans.put(None)
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def _run(
        self,
        placement: Placement,
        checkpoint: Checkpoint,
        spec: ModelSpec,
        report: Callable[[ExecutorInfo | BaseException], None],
    ) -> None:
        try:
            worker, info = self._build(placement, checkpoint, spec)
        except FAILURES as error:
            report(error)
            return
        report(info)
        try:
            while (plan := self._plans[placement.rank].get()) is not None:
                result = worker.execute(plan)
                if placement.answers:
                    self._results.put(result)
        except FAILURES as error:
            self._results.put(error)

    def _build(self, placement: Placement, checkpoint: Checkpoint, spec: ModelSpec) -> tuple[Worker, ExecutorInfo]:
        """The KV pool must have a stated number of blocks: ranks do not compare here."""
        config, device = self._config, torch.device("cpu")
        store = self._server.store if placement.rank == 0 else join_store(HOST, self._server.port, TIMEOUT_S)
        context = connect(placement, store, device, HOST, TIMEOUT_S)
        model = load_model(config, checkpoint, spec, device, lambda fraction: None, context)
        rehearse(model, config, rehearsal(model, config))  # as accelerators do
        plan = plan_kv(spec, config, [kv_room(model, config)])
        info = executor_info(model, plan, placement.num_stages)
        return build_worker(model, plan.num_blocks, plan.block_size), info
