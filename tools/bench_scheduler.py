"""Cost of the scheduler and the KV books per decode step, without a model: `python tools/bench_scheduler.py`.

Every running sequence gets one token per step. The figures are CPU time of this thread in milliseconds: schedule +
commit alone, and with what the engine loop adds (encoding the outputs).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from inferd.config import CacheConfig, SchedulerConfig
from inferd.core.lifetime import settle_garbage_collector
from inferd.messages import StepOutputs, encode_frame
from inferd.scheduler.limits import Capacity
from inferd.scheduler.scheduler import Scheduler
from inferd.step import SampledToken, SequenceResult, StepPlan, StepResult
from inferd.testing.requests import make_request

BLOCK_SIZE = 16
TURN = 20  # steps: the caches are a case's own for nearly all of them


def answer(plan: StepPlan, token_id: int) -> StepResult:
    results = [SequenceResult(item.seq_id, [SampledToken(token_id) for _ in item.choices]) for item in plan.items]
    return StepResult(plan.step, results, 0.0)


class DecodeSteps:
    """A scheduler whose running sequences all get one token per step."""

    def __init__(self, running: int, waiting: int, num_blocks: int, prompt: int, steps: int) -> None:
        config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=max(8192, running))
        self.running = running
        self.own: list[float] = []  # milliseconds of schedule + commit, one a step
        self.whole: list[float] = []  # with encoding
        self._scheduler = scheduler = Scheduler(
            config, CacheConfig(), Capacity(num_blocks, BLOCK_SIZE, 100_000, 50_000)
        )
        rng = random.Random(1)
        for key in range(running + waiting):
            tokens = rng.choices(range(50_000), k=rng.randint(prompt // 2, prompt))
            scheduler.add(make_request(key, tokens, max_tokens=steps + 200, deadline=1e6, queue_deadline=1e6))
        while scheduler.stats().running < running or scheduler.stats().step_tokens > running:
            plan = scheduler.schedule(0.0)
            assert plan is not None
            scheduler.commit(plan, answer(plan, 1), 0.0)

    def step(self, token_id: int) -> None:
        scheduler = self._scheduler
        start = time.thread_time()
        outputs = scheduler.expired(0.0)
        plan = scheduler.schedule(0.0)
        planned = time.thread_time()
        assert plan is not None
        assert len(plan.items) == self.running
        result = answer(plan, token_id)
        resumed = time.thread_time()
        outputs += scheduler.commit(plan, result, 0.0)
        committed = time.thread_time()
        encode_frame(StepOutputs(outputs, scheduler.stats()))
        end = time.thread_time()
        self.own.append((planned - start + committed - resumed) * 1e3)
        self.whole.append((planned - start + end - resumed) * 1e3)

    def check(self) -> None:
        self._scheduler.check()


def measure(steps: int, *cases: tuple[int, int, int, int]) -> None:
    """Print a line per case. They take turns, so that what else the machine does meets them all alike."""
    runs = [DecodeSteps(*case, steps) for case in cases]
    settle_garbage_collector()
    for first in range(0, steps, TURN):
        for run in runs:
            for step in range(first, min(first + TURN, steps)):
                run.step(step)
    for run, (running, waiting, num_blocks, prompt) in zip(runs, cases, strict=True):
        run.check()
        median, best = statistics.median(run.own), sorted(run.own)[steps // 10]
        print(
            f"{running:7} {waiting:8} {num_blocks:9} {prompt:7} {median:11.3f} {best:9.3f}"
            f" {statistics.median(run.whole):17.3f} {median * 1e3 / running:12.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    print("running  waiting    blocks  prompt   median ms  best 10%  with encoding ms  us/sequence")
    measure(steps, (16, 10, 100_000, 512))
    measure(steps, (256, 10, 100_000, 512))
    measure(steps, (1024, 10, 100_000, 512))
    measure(steps, (1024, 10, 100_000, 512), (1024, 10_000, 100_000, 512))
    measure(steps, (1024, 10, 50_000, 128))
    measure(steps, (256, 10, 100_000, 4096))


if __name__ == "__main__":
    main()
