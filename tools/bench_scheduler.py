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


def answer(plan: StepPlan, token_id: int) -> StepResult:
    results = [SequenceResult(item.seq_id, [SampledToken(token_id) for _ in item.choices]) for item in plan.items]
    return StepResult(plan.step, results, 0.0)


def decode_step_ms(running: int, waiting: int, num_blocks: int, prompt: int, steps: int) -> tuple[float, float, float]:
    """Median and 10th percentile of schedule + commit, and the median with encoding, of `steps` steps."""
    config = SchedulerConfig(max_num_seqs=running, max_num_batched_tokens=max(8192, running))
    scheduler = Scheduler(config, CacheConfig(), Capacity(num_blocks, BLOCK_SIZE, 100_000, 50_000))
    rng = random.Random(1)
    for key in range(running + waiting):
        length = rng.randint(prompt // 2, prompt)
        tokens = rng.choices(range(50_000), k=length)
        scheduler.add(make_request(key, tokens, max_tokens=steps + 200, deadline=1e6, queue_deadline=1e6))
    while scheduler.stats().running < running or scheduler.stats().step_tokens > running:
        plan = scheduler.schedule(0.0)
        assert plan is not None
        scheduler.commit(plan, answer(plan, 1), 0.0)
    settle_garbage_collector()
    own, whole = [], []
    for step in range(steps):
        start = time.thread_time()
        outputs = scheduler.expired(0.0)
        plan = scheduler.schedule(0.0)
        planned = time.thread_time()
        assert plan is not None
        assert len(plan.items) == running
        result = answer(plan, step)
        resumed = time.thread_time()
        outputs += scheduler.commit(plan, result, 0.0)
        committed = time.thread_time()
        encode_frame(StepOutputs(outputs, scheduler.stats()))
        end = time.thread_time()
        own.append((planned - start + committed - resumed) * 1e3)
        whole.append((planned - start + end - resumed) * 1e3)
    scheduler.check()
    return statistics.median(own), sorted(own)[len(own) // 10], statistics.median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    print("running  waiting    blocks  prompt   median ms  best 10%  with encoding ms  us/sequence")
    for running, waiting, num_blocks, prompt in [
        (16, 10, 100_000, 512),
        (256, 10, 100_000, 512),
        (1024, 10, 100_000, 512),
        (1024, 10_000, 100_000, 512),
        (1024, 10, 50_000, 128),
        (256, 10, 100_000, 4096),
    ]:
        median, best, whole = decode_step_ms(running, waiting, num_blocks, prompt, steps)
        per_sequence = median * 1e3 / running
        print(
            f"{running:7} {waiting:8} {num_blocks:9} {prompt:7} {median:11.3f} {best:9.3f} {whole:17.3f}"
            f" {per_sequence:12.2f}"
        )


if __name__ == "__main__":
    main()
