"""n > 1: one prompt, several choices."""

from __future__ import annotations

from inferd.config import SchedulerConfig
from inferd.request import FinishReason, SamplingParams, StopParams
from inferd.step import SampledToken, SequenceResult, StepResult
from inferd.testing.fake_executor import fake_info, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 1000


def driver(num_blocks: int = 64, **config: object) -> Driver:
    return Driver(fake_info(num_blocks, 4, 128, VOCAB), SchedulerConfig(**config))  # type: ignore[arg-type]


def expected(choice: int, count: int = 4) -> list[int]:
    return solo_tokens(range(6), 5, choice, count, VOCAB)


def test_the_prompt_is_computed_once_and_every_choice_goes_its_way():
    drive = driver(max_num_batched_tokens=4)
    drive.add(make_request(1, range(6), seed=5, num_choices=3))
    drive.run()
    assert [(len(item.token_ids), item.choices) for plan in drive.plans[:2] for item in plan.items] == [
        (4, ()),
        (2, (0, 1, 2)),
    ]
    third = drive.plans[2]
    assert [item.choices for item in third.items] == [(0,), (1,), (2,)]
    assert [new.seq_id for new in third.new] == [2, 3]
    assert len(third.copies) == 2, "three writers of one partial block: the last one keeps it"
    assert [drive.choice(1, choice).token_ids for choice in range(3)] == [expected(choice) for choice in range(3)]
    assert [drive.choice(1, choice).prompt is not None for choice in range(3)] == [True, False, False]


def test_no_copy_when_the_prompt_fills_its_blocks():
    drive = driver()
    drive.add(make_request(1, range(8), num_choices=4))
    drive.run()
    assert not any(plan.copies for plan in drive.plans)
    assert drive.choice(1, 3).token_ids == solo_tokens(range(8), 0, 3, 4, VOCAB)


def test_forks_know_the_history():
    drive = driver()
    penalty = SamplingParams(temperature=0.0, seed=5, frequency_penalty=1.0)
    drive.add(make_request(1, range(6), num_choices=2, sampling=penalty))
    drive.run()
    (fork,) = drive.plans[1].new
    assert fork.history == [*range(6), expected(1)[0]]
    assert fork.num_output_tokens == 1


def test_one_token_each_needs_no_second_step():
    drive = driver()
    drive.add(make_request(1, range(6), max_tokens=1, seed=5, num_choices=4))
    drive.run()
    assert len(drive.plans) == 1
    assert [drive.choice(1, choice).token_ids for choice in range(4)] == [expected(choice, 1) for choice in range(4)]
    assert drive.scheduler.stats().blocks_used == 0


def test_choices_end_each_at_its_own_time():
    drive = driver()
    stop = StopParams(max_tokens=4, eos_token_ids=(expected(1)[0], expected(2)[1]))
    drive.add(make_request(1, range(6), seed=5, num_choices=3, stop=stop))
    drive.run()
    assert [(len(drive.choice(1, choice).token_ids), drive.choice(1, choice).finish) for choice in range(3)] == [
        (4, FinishReason.MAX_TOKENS),
        (1, FinishReason.EOS),
        (2, FinishReason.EOS),
    ]


def test_a_choice_aborted_before_the_fork_is_never_sampled():
    for aborted in range(3):
        drive = driver(max_num_batched_tokens=4)
        drive.add(make_request(1, range(6), seed=5, num_choices=3))
        drive.step()
        drive.scheduler.abort(1, aborted)
        drive.run()
        left = [choice for choice in range(3) if choice != aborted]
        assert drive.plans[1].items[0].choices == tuple(left)
        assert sorted(drive.outputs) == [(1, choice) for choice in left]
        assert [drive.choice(1, choice).token_ids for choice in left] == [expected(choice) for choice in left]


def test_a_choice_aborted_after_the_fork():
    for aborted in range(3):
        drive = driver()
        drive.add(make_request(1, range(6), seed=5, num_choices=3))
        drive.step()
        drive.step()
        drive.scheduler.abort(1, aborted)
        drive.scheduler.check()
        drive.run()
        assert drive.choice(1, aborted).num_ends == 0
        assert all(drive.choice(1, choice).token_ids == expected(choice) for choice in range(3) if choice != aborted)


def test_a_failed_choice_leaves_the_others():
    for failed in range(3):
        drive = driver()
        drive.add(make_request(1, range(6), seed=5, num_choices=3, max_tokens=1))
        plan = drive.scheduler.schedule(0.0)
        assert plan is not None
        samples = [SampledToken(-1 if choice == failed else 7) for choice in range(3)]
        outputs = drive.scheduler.commit(plan, StepResult(1, [SequenceResult(1, samples)], 0.0), 0.0)
        assert [(output.choice, output.token_ids, output.error) for output in outputs] == [
            (choice, [], "NUMERIC_ERROR") if choice == failed else (choice, [7], None) for choice in range(3)
        ]
        assert outputs[0].prompt is not None
        assert not drive.scheduler.has_work
        drive.scheduler.check()


def test_more_choices_than_seats_run_in_turns():
    drive = driver(max_num_seqs=2)
    drive.add(make_request(1, range(6), seed=5, num_choices=5))
    drive.add(make_request(2, range(9), seed=5))
    while drive.scheduler.has_work:
        plan = drive.step()
        assert plan is None or len(plan.items) <= 2
    assert [drive.choice(1, choice).token_ids for choice in range(5)] == [expected(choice) for choice in range(5)]
    assert drive.choice(2).token_ids == solo_tokens(range(9), 5, 0, 4, VOCAB)


def test_choices_are_preempted_and_recomputed_on_their_own():
    drive = driver(num_blocks=6)
    drive.add(make_request(1, range(6), seed=5, num_choices=4, max_tokens=14))
    drive.run()
    assert drive.scheduler.stats().preemptions > 0
    assert [drive.choice(1, choice).token_ids for choice in range(4)] == [expected(choice, 14) for choice in range(4)]
