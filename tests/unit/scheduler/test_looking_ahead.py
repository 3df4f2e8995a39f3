"""Where the executor looks ahead, a plan is made while the one before is in flight. What choices get stays the same."""

from __future__ import annotations

import pytest

from inferd.config import SchedulerConfig
from inferd.request import FinishReason, Request, SamplingParams, StopParams
from inferd.step import PENDING, StepPlan
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 1000


def driver(num_blocks: int = 64, behaviour: Behaviour | None = None, **config: int) -> Driver:
    executor = FakeExecutor(fake_info(num_blocks, 4, 128, VOCAB, looks_ahead=True), behaviour or Behaviour())
    return Driver(config=SchedulerConfig(**config), executor=executor)  # type: ignore[arg-type]


def pending(plan: StepPlan) -> list[int]:
    return [item.seq_id for item in plan.items if item.token_ids == [PENDING]]


def test_each_plan_but_the_first_is_made_before_its_token_is_known():
    drive = driver()
    drive.add(make_request(1, range(5), max_tokens=6, seed=9))
    drive.step()
    assert len(drive.plans) == 2
    drive.run()
    assert drive.choice(1).token_ids == solo_tokens(range(5), 9, 0, 6, VOCAB)
    assert [pending(plan) for plan in drive.plans] == [[], [1], [1], [1], [1], [1]]
    assert [plan.items[0].start for plan in drive.plans] == [0, 5, 6, 7, 8, 9]
    assert [len(plan.items[0].new_block_ids) for plan in drive.plans] == [0, 0, 0, 0, 1, 0]


def test_a_stop_token_ends_the_choice_and_what_was_computed_after_it_is_left_out():
    tokens = solo_tokens(range(5), 0, 0, 8, VOCAB)
    drive = driver()
    drive.add(make_request(1, range(5), stop=StopParams(max_tokens=20, eos_token_ids=(tokens[3],))))
    drive.run()
    assert (drive.choice(1).token_ids, drive.choice(1).finish) == (tokens[:4], FinishReason.EOS)
    assert len(drive.plans) == 5
    assert drive.scheduler.stats().blocks_used == 0


def test_a_failed_choice_ends_once():
    drive = driver(behaviour=Behaviour(nan_seeds=(7,)))
    drive.add(make_request(1, range(5), seed=7, max_tokens=9), make_request(2, range(5), seed=8, max_tokens=9))
    drive.run()
    assert (drive.choice(1).error, drive.choice(1).num_ends) == ("NUMERIC_ERROR", 1)
    assert drive.choice(2).token_ids == solo_tokens(range(5), 8, 0, 9, VOCAB)


@pytest.mark.parametrize(
    "other",
    [
        make_request(2, range(3), max_tokens=9, sampling=SamplingParams(temperature=0.0, presence_penalty=0.5)),
        make_request(2, range(3), max_tokens=9, sampling=SamplingParams(temperature=0.0, bad_words=((1, 2),))),
    ],
)
def test_nothing_is_planned_ahead_beside_a_sequence_whose_draw_needs_the_token(other: Request):
    drive = driver()
    drive.add(make_request(1, range(5), max_tokens=9), other)
    drive.run()
    assert [pending(plan) for plan in drive.plans] == [[]] * 9
    assert drive.choice(1).token_ids == solo_tokens(range(5), 0, 0, 9, VOCAB)


def test_a_prompt_in_chunks_and_a_fork_are_waited_for():
    drive = driver(max_num_batched_tokens=8)
    drive.add(make_request(1, range(20), max_tokens=3, num_choices=2))
    drive.run()
    assert [len(pending(plan)) for plan in drive.plans] == [0, 0, 0, 0, 2]
    assert [drive.choice(1, choice).token_ids for choice in (0, 1)] == [
        solo_tokens(range(20), 0, choice, 3, VOCAB) for choice in (0, 1)
    ]


def test_a_newcomer_joins_a_plan_that_looks_ahead():
    drive = driver()
    drive.add(make_request(1, range(5), max_tokens=9))
    drive.step()
    drive.add(make_request(2, range(7), max_tokens=9))
    plan = drive.step()
    assert plan is not None
    assert [(item.seq_id, item.token_ids == [PENDING]) for item in plan.items] == [(1, True), (2, False)]
    drive.run()
    assert drive.choice(2).token_ids == solo_tokens(range(7), 0, 0, 9, VOCAB)


def test_what_is_preempted_or_aborted_meanwhile_is_left_out():
    drive = driver(num_blocks=8)
    drive.add(*(make_request(key, range(9), max_tokens=14, seed=key) for key in (1, 2, 3)))
    drive.step()
    drive.scheduler.abort(3)
    drive.run()
    assert drive.scheduler.stats().preemptions > 0
    for key in (1, 2):
        assert drive.choice(key).token_ids == solo_tokens(range(9), key, 0, 14, VOCAB)
