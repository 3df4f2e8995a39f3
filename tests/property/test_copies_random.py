"""Copies of one plan are made at the same time: no block may be read by one and written by another. Many choices of few
prompts in a pool that is too small, so that a fork is preempted while its sibling copies the block they shared."""

from __future__ import annotations

import random

from inferd.config import SchedulerConfig
from inferd.request import Request
from inferd.testing.fake_executor import FakeExecutor, fake_info, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 61
CONTEXT = 40


def random_request(rng: random.Random, key: int, longest: int) -> Request:
    """All come at the same moment: then a fork may rank behind the forks of another prompt."""
    return make_request(
        key,
        [key] * rng.randint(1, longest),
        max_tokens=rng.randint(2, 9),
        num_choices=rng.randint(2, 4),
        arrival=1.0,
        deadline=rng.uniform(2000, 3000),
    )


def play(seed: int) -> tuple[int, int]:
    """Returns the number of copies and of plans that copy and drop. The fake executor refuses copies in a chain."""
    rng = random.Random(seed)
    block_size = rng.choice([3, 4, 7])
    info = fake_info(-(-CONTEXT // block_size) + rng.randint(0, 6), block_size, CONTEXT, VOCAB, rng.choice([1, 1, 2]))
    config = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=64)
    drive = Driver(config=config, executor=FakeExecutor(info))
    requests = [random_request(rng, key, 3 * block_size) for key in range(6)]
    drive.add(*requests)
    drive.run()
    for request in requests:
        for choice in range(request.num_choices):
            expected = solo_tokens(request.prompt_token_ids, 0, choice, request.stop.max_tokens, VOCAB)
            assert drive.choice(request.key, choice).token_ids == expected
    return sum(len(plan.copies) for plan in drive.plans), sum(
        bool(plan.copies and plan.dropped) for plan in drive.plans
    )


def test_no_plan_reads_and_writes_a_block_by_copies() -> None:
    copies, with_drops = (sum(counts) for counts in zip(*(play(seed) for seed in range(300)), strict=True))
    assert copies > 1000
    assert with_drops > 50, "the pools are too large to reach what is tested"
