"""Aborts and clocks: every request ends once, and what it held comes back at once."""

from __future__ import annotations

import pytest

from inferd.config import SchedulerConfig
from inferd.request import FinishReason, StopParams
from inferd.testing.fake_executor import fake_info, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 1000


def driver(**config: object) -> Driver:
    return Driver(fake_info(64, 4, 128, VOCAB), SchedulerConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [0, 1, 2, 4])
def test_abort_in_any_stage_frees_at_once_and_says_nothing(steps):
    drive = driver(max_num_batched_tokens=4)
    drive.add(make_request(1, range(6), max_tokens=9, num_choices=2))
    for _ in range(steps):
        drive.step()
    before = {key: list(got.token_ids) for key, got in drive.outputs.items()}
    drive.scheduler.abort(1)
    stats = drive.scheduler.stats()
    assert (stats.blocks_used, stats.running, stats.waiting, stats.waiting_prompt_tokens) == (0, 0, 0, 0)
    assert drive.step() is None
    assert {key: got.token_ids for key, got in drive.outputs.items()} == before
    assert all(got.num_ends == 0 for got in drive.outputs.values())
    assert not drive.scheduler.has_work


def test_abort_of_the_unknown_is_nothing():
    drive = driver()
    drive.scheduler.abort(5)
    drive.add(make_request(1, range(3), max_tokens=1))
    drive.scheduler.abort(1, 7)
    drive.run()
    drive.scheduler.abort(1)
    assert drive.choice(1).num_ends == 1


def test_the_executor_drops_what_was_aborted():
    drive = driver()
    drive.add(make_request(1, range(3), max_tokens=9), make_request(2, range(3), max_tokens=3))
    drive.step()
    drive.scheduler.abort(1)
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == [1]
    assert [item.seq_id for item in plan.items] == [2]


def test_queue_deadline_ends_only_what_was_never_scheduled():
    drive = driver(max_num_seqs=1)
    drive.add(make_request(1, range(3), max_tokens=5, queue_deadline=1001.0))
    drive.add(make_request(2, range(3), max_tokens=5, queue_deadline=1001.0, num_choices=2))
    drive.step()
    drive.now = 1001.0
    drive.run()
    assert drive.choice(1).finish is FinishReason.MAX_TOKENS
    assert [drive.choice(2, choice).error for choice in range(2)] == ["QUEUE_TIMEOUT"] * 2
    assert all(item.seq_id == 1 for plan in drive.plans for item in plan.items)


def test_a_deadline_in_the_queue_costs_no_prefill():
    drive = driver()
    drive.add(make_request(1, range(3), deadline=999.0))
    drive.run()
    assert drive.choice(1).error == "DEADLINE_EXCEEDED"
    assert drive.plans == []


def test_a_deadline_while_running():
    drive = driver()
    drive.add(make_request(1, range(3), max_tokens=50, deadline=1003.0), make_request(2, range(3), max_tokens=8))
    while drive.scheduler.has_work:
        drive.step()
        drive.now += 1.0
    got = drive.choice(1)
    assert (got.error, len(got.token_ids)) == ("DEADLINE_EXCEEDED", 3)
    assert drive.choice(2).token_ids == solo_tokens(range(3), 0, 0, 8, VOCAB)


def test_a_time_limit_is_a_finish_with_what_there_is():
    drive = driver()
    stop = StopParams(max_tokens=50, time_limit_s=2.0)
    drive.add(make_request(1, range(3), stop=stop, arrival=1000.0, num_choices=2))
    while drive.scheduler.has_work:
        drive.step()
        drive.now += 1.0
    for choice in range(2):
        got = drive.choice(1, choice)
        assert (got.finish, got.error) == (FinishReason.TIME_LIMIT, None)
        assert got.token_ids == solo_tokens(range(3), 0, choice, 2, VOCAB)


def test_a_time_limit_in_the_queue_still_tells_of_the_prompt():
    drive = driver(max_num_seqs=1)
    drive.add(make_request(1, range(3), max_tokens=9))
    drive.add(make_request(2, range(3), stop=StopParams(max_tokens=9, time_limit_s=2.0), arrival=1000.0))
    drive.step()
    drive.now = 1002.5
    drive.step()
    got = drive.choice(2)
    assert (got.finish, got.token_ids) == (FinishReason.TIME_LIMIT, [])
    assert got.prompt is not None
    assert got.prompt.queue_s == 2.5


def test_stats_add_up():
    drive = driver(max_num_seqs=1)
    drive.add(make_request(1, range(5), max_tokens=3), make_request(2, range(7), max_tokens=3))
    drive.step()
    stats = drive.scheduler.stats()
    assert (stats.running, stats.waiting, stats.waiting_prompt_tokens) == (1, 1, 7)
    assert (stats.blocks_used, stats.blocks_total) == (2, 64)
    assert (stats.steps, stats.step_tokens, stats.computed_tokens) == (1, 5, 5)
    drive.run()
    stats = drive.scheduler.stats()
    assert (stats.running, stats.waiting, stats.waiting_prompt_tokens, stats.blocks_used) == (0, 0, 0, 0)
    assert stats.computed_tokens == sum(plan.num_tokens for plan in drive.plans)
