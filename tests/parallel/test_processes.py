"""The ranks as processes: they answer, die together, are found when they hang, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inferd.config import EngineConfig, ParallelConfig
from inferd.errors import StartupError
from inferd.executor import rank_processes
from inferd.executor.base import Executor, ExecutorDead
from inferd.executor.factory import create_executor
from inferd.executor.rank_processes import RankProcesses
from inferd.request import SamplingParams
from inferd.step import NewSequence, PlanItem, StepPlan
from inferd.testing.processes import children_of, descriptors, shared_memory

Start = Callable[[EngineConfig], Executor]
Config = Callable[..., EngineConfig]

pytestmark = pytest.mark.usefixtures("rank_environment")


@pytest.fixture
def start() -> Iterator[Start]:
    executors: list[Executor] = []

    def create(config: EngineConfig) -> Executor:
        executors.append(create_executor(config, lambda phase, fraction: None))
        return executors[-1]

    yield create
    for executor in executors:
        executor.shutdown()


def step(number: int, length: int = 5) -> StepPlan:
    """A prompt of its own for each step."""
    new = NewSequence(number, [number % 40], SamplingParams(temperature=0.0), None, None, [], 0, 0, ())
    return StepPlan(number, [PlanItem(number, 0, list(range(3, 3 + length)), [], (0,))], [new])


def test_answers_are_those_of_one_process(
    start: Start,
    engine_config: Config,
    tiny_model: Callable[[str], Path],
    ask: Callable[..., Any],
    same: Callable[[Any, Any], None],
) -> None:
    """And each rank has read its part of the checkpoint, once."""
    path = tiny_model("llama")
    expected, _ = ask(create_executor(engine_config(path), lambda phase, fraction: None), engine_config(path), 10, 8)
    config = engine_config(path, 2, 2)
    executor = start(config)
    answers, _ = ask(executor, config, 10, 8)
    same(answers, expected)
    assert executor.info.pipeline_depth == 2
    timings = executor.timings()
    assert [(each.rank, each.stage) for each in sorted(timings, key=lambda each: each.rank)] == [
        (0, 0), (1, 0), (2, 1), (3, 1),
    ]  # fmt: skip
    assert all(each.steps > 0 and each.compute_s > 0 and each.wait_s > 0 for each in timings)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", ["idle", "working"])
def test_a_killed_rank_ends_the_group_at_once(
    start: Start, engine_config: Config, tiny_model: Callable[[str], Path], victim: int, moment: str
) -> None:
    before = set(children_of(os.getpid()))
    executor = start(engine_config(tiny_model("llama"), 1 + victim, 2 - victim))
    died = threading.Event()
    executor.execute(step(1))
    executor.watch(lambda error: died.set())
    ranks = sorted(set(children_of(os.getpid())) - before)
    assert len(ranks) == 2
    if moment == "working":
        os.kill(ranks[1 - victim], signal.SIGSTOP)
        executor.submit(step(2))
    os.kill(ranks[victim], signal.SIGKILL)
    killed = time.monotonic()
    assert died.wait(2.0)
    with pytest.raises(ExecutorDead, match="was killed by SIGKILL"):
        executor.execute(step(3))
    assert time.monotonic() - killed < 2.0
    assert not set(children_of(os.getpid())) & set(ranks)


def test_a_step_that_hangs_is_found_and_all_stacks_are_logged(
    start: Start, engine_config: Config, tiny_model: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    before = set(children_of(os.getpid()))
    executor = start(engine_config(tiny_model("llama"), 3, 1, step_timeout_s=1.0))
    executor.execute(step(1))
    ranks = sorted(set(children_of(os.getpid())) - before)
    os.kill(ranks[1], signal.SIGSTOP)
    with pytest.raises(ExecutorDead, match="a step took longer than 1 s"):
        executor.execute(step(2))
    assert "rank 0 is here" in caplog.text
    assert "rank 2 is here" in caplog.text
    assert "all_reduce" in caplog.text
    assert "ranks that do not answer: 1" in caplog.text
    assert not set(children_of(os.getpid())) & set(ranks)


@pytest.mark.parametrize("cycles", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_starts_and_stops_leave_nothing(cycles: int, engine_config: Config, tiny_model: Callable[[str], Path]) -> None:
    def cycle() -> None:
        executor = create_executor(engine_config(tiny_model("llama"), 2), lambda phase, fraction: None)
        executor.execute(step(1))
        executor.shutdown()
        executor.shutdown()

    before = children_of(os.getpid()), descriptors(), shared_memory(), threading.active_count()
    for _ in range(cycles):
        cycle()
    assert (children_of(os.getpid()), descriptors(), shared_memory(), threading.active_count()) == before


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        (ParallelConfig(tensor_parallel_size=5), "--tensor-parallel-size may be 1 to 4"),
        (ParallelConfig(pipeline_parallel_size=4), "--pipeline-parallel-size may be 1 to 3"),
        (ParallelConfig(tensor_parallel_size=2, backend="local"), "local runs one worker; 2 need multiprocess or ray"),
        (ParallelConfig(tensor_parallel_size=3, nnodes=2, master_addr="10.0.0.1"), "--nnodes 2: it must divide them"),
        (ParallelConfig(tensor_parallel_size=2, nnodes=2, backend="ray"), "--nnodes is for running without Ray"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    parallel: ParallelConfig, message: str, engine_config: Config, tiny_model: Callable[[str], Path]
) -> None:
    import msgspec

    config = msgspec.structs.replace(engine_config(tiny_model("llama")), parallel=parallel)
    before = children_of(os.getpid())
    with pytest.raises(StartupError, match=message):
        create_executor(config, lambda phase, fraction: None)
    assert children_of(os.getpid()) == before


def test_a_rank_that_cannot_start_says_why(engine_config: Config, tiny_model: Callable[[str], Path]) -> None:
    import msgspec

    config = engine_config(tiny_model("llama"), 2)
    config = msgspec.structs.replace(
        config,
        model=msgspec.structs.replace(config.model, quantization="fp8"),
        device=msgspec.structs.replace(config.device, kernel_backend="native"),
    )
    before = children_of(os.getpid())  # of other tests' fixtures
    with pytest.raises(StartupError, match=r"quantization fp8: kernel backend native-\w+ takes q4, q8"):
        create_executor(config, lambda phase, fraction: None)
    assert set(children_of(os.getpid())) <= set(before)


def test_a_worker_that_cannot_be_killed_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process in an uninterruptible call of a driver: SIGKILL waits until it returns."""

    class Stuck:
        pid = 4242

        def kill(self) -> None:
            pass

        def poll(self) -> None:
            return None

        def wait(self, timeout: float | None = None) -> None:
            assert timeout is not None, "nobody waits for ever"
            raise subprocess.TimeoutExpired("worker", timeout)

    monkeypatch.setattr(rank_processes.subprocess, "Popen", lambda *args, **options: Stuck())
    processes = RankProcesses()
    processes.start_remote(3, "127.0.0.1:1", "")
    processes.kill()
    assert "rank 3 (pid 4242) does not end" in caplog.text
