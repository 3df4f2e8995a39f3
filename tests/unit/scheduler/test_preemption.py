"""Too few blocks or seats: who yields, and that nobody's tokens change."""

from __future__ import annotations

from inferd.config import SchedulerConfig
from inferd.request import LogprobParams
from inferd.testing.fake_executor import fake_info, fake_logprobs, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 1000


def driver(num_blocks: int, **config: object) -> Driver:
    return Driver(fake_info(num_blocks, 4, 128, VOCAB), SchedulerConfig(**config))  # type: ignore[arg-type]


def test_the_youngest_yields_and_continues_as_if_nothing_had_happened():
    drive = driver(num_blocks=8)
    for key in (1, 2, 3):
        drive.add(make_request(key, range(key, key + 6), max_tokens=16, seed=key))
    drive.run()
    assert drive.scheduler.stats().preemptions > 0
    dropped = {seq_id for plan in drive.plans for seq_id in plan.dropped}
    first_end = next(plan.step for plan in drive.plans if 1 in plan.dropped)
    assert 3 in {seq_id for plan in drive.plans[: first_end - 1] for seq_id in plan.dropped}
    assert dropped >= {1, 2, 3} - {drive.plans[-1].items[0].seq_id}
    for key in (1, 2, 3):
        assert drive.choice(key).token_ids == solo_tokens(range(key, key + 6), key, 0, 16, VOCAB)


def test_lower_priority_yields_before_younger():
    drive = driver(num_blocks=6)
    drive.add(make_request(1, range(6), max_tokens=12, priority=-1), make_request(2, range(10, 16), max_tokens=12))
    drive.step()
    drive.run()
    first_dropped = next(seq_id for plan in drive.plans for seq_id in plan.dropped)
    assert drive.scheduler.stats().preemptions > 0
    assert first_dropped == 1


def test_a_higher_priority_takes_the_seat_of_a_lower_one():
    drive = driver(num_blocks=64, max_num_seqs=2)
    drive.add(make_request(1, range(6), max_tokens=10), make_request(2, range(8), max_tokens=10))
    drive.step()
    drive.add(make_request(3, range(9), max_tokens=2, priority=1))
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == [2]
    assert {item.seq_id for item in plan.items} == {1, 3}
    drive.run()
    assert drive.choice(2).token_ids == solo_tokens(range(8), 0, 0, 10, VOCAB)
    assert drive.choice(3).token_ids == solo_tokens(range(9), 0, 0, 2, VOCAB)


def test_a_higher_priority_takes_the_blocks_of_a_lower_one():
    drive = driver(num_blocks=6)
    drive.add(make_request(1, range(20), max_tokens=4))
    drive.step()
    drive.add(make_request(2, range(50, 62), max_tokens=1, priority=5))
    plan = drive.step()
    assert plan is not None
    assert [item.seq_id for item in plan.items] == [2]
    drive.run()
    assert drive.choice(1).token_ids == solo_tokens(range(20), 0, 0, 4, VOCAB)


def test_equal_priority_takes_nothing():
    drive = driver(num_blocks=64, max_num_seqs=1)
    drive.add(make_request(1, range(6), max_tokens=5))
    drive.step()
    drive.add(make_request(2, range(6), max_tokens=1))
    drive.run()
    assert drive.scheduler.stats().preemptions == 0


def test_nobody_is_preempted_for_one_who_would_not_fit_even_then():
    drive = driver(num_blocks=8)
    drive.add(make_request(1, range(20), max_tokens=8, priority=5), make_request(2, [90, 91], max_tokens=4))
    drive.step()
    drive.add(make_request(3, range(40, 60), max_tokens=1, priority=1))
    plan = drive.step()
    assert plan is not None
    assert {item.seq_id for item in plan.items} == {1, 2}


def test_blocks_that_others_share_do_not_count_as_room():
    """Two of lower priority stand on the prompt of one of higher: of their blocks most would stay taken."""
    drive = driver(num_blocks=12)
    drive.add(make_request(1, range(24), max_tokens=20, priority=5))
    drive.step()
    drive.add(*[make_request(key, [*range(24), 100 + key], max_tokens=2) for key in (2, 3)])
    drive.step()
    drive.add(make_request(4, range(200, 220), max_tokens=1, priority=1))
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == []
    assert [item.seq_id for item in plan.items] == [1, 2, 3]
    drive.run()
    assert drive.choice(4).token_ids == solo_tokens(range(200, 220), 0, 0, 1, VOCAB)


def test_a_prefix_that_others_hold_needs_no_room():
    drive = driver(num_blocks=10, max_num_seqs=2)
    drive.add(make_request(1, range(20), max_tokens=20, priority=5))
    drive.step()
    drive.add(make_request(2, [90, 91], max_tokens=9))
    drive.step()
    drive.add(make_request(3, [*range(20), 7], max_tokens=1, priority=1))
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == [2]
    assert {item.seq_id for item in plan.items} == {1, 3}


def test_nobody_is_preempted_for_one_who_cannot_grow_even_then():
    """The fork behind the one that grows holds nothing that the first fork does not hold as well."""
    drive = driver(num_blocks=5)
    drive.add(make_request(1, range(12), max_tokens=5, num_choices=2, arrival=1.0))
    drive.add(make_request(2, range(50, 54), max_tokens=5, arrival=1.0))
    drive.step()
    plan = drive.step()
    assert plan is not None
    assert plan.dropped == []
    assert {item.seq_id for item in plan.items} == {1}
    drive.run()
    assert drive.scheduler.stats().preemptions == 0
    for key, choice, prompt in ((1, 0, range(12)), (1, 1, range(12)), (2, 0, range(50, 54))):
        assert drive.choice(key, choice).token_ids == solo_tokens(prompt, 0, choice, 5, VOCAB)


def test_preempted_in_the_middle_of_its_prompt():
    drive = driver(num_blocks=6, max_num_batched_tokens=4)
    params = LogprobParams(top_n=1)
    drive.add(make_request(1, range(20), max_tokens=2, prompt_logprobs=params))
    drive.step()
    drive.step()
    drive.add(make_request(2, range(50, 62), max_tokens=1, priority=5))
    drive.run()
    assert drive.scheduler.stats().preemptions == 1
    prompt = drive.choice(1).prompt
    assert prompt is not None
    assert prompt.prompt_logprobs == [fake_logprobs(token, params, VOCAB) for token in range(1, 20)]
    assert drive.choice(1).token_ids == solo_tokens(range(20), 0, 0, 2, VOCAB)


def test_prompt_logprobs_come_once_although_the_prompt_is_computed_again():
    drive = driver(num_blocks=8)
    for key in (1, 2, 3):
        drive.add(make_request(key, range(key, key + 6), max_tokens=16, prompt_logprobs=LogprobParams()))
    drive.run()
    assert drive.scheduler.stats().preemptions > 0
    for key in (1, 2, 3):
        prompt = drive.choice(key).prompt
        assert prompt is not None
        assert len(prompt.prompt_logprobs) == 5


def test_recomputing_finds_what_the_cache_still_has():
    drive = driver(num_blocks=64, max_num_seqs=1)
    drive.add(make_request(1, range(40), max_tokens=4))
    drive.step()
    drive.add(make_request(2, [500], max_tokens=1, priority=1))
    drive.run()
    starts = [item.start for plan in drive.plans for item in plan.items if item.seq_id == 1]
    assert starts == [0, 40, 41, 42]
    prompt = drive.choice(1).prompt
    assert prompt is not None
    assert prompt.num_cached_tokens == 0


def test_a_newcomer_leaves_the_running_ones_room_to_grow():
    drive = driver(num_blocks=5)
    drive.add(make_request(1, range(6), max_tokens=8))
    drive.step()
    drive.add(make_request(2, range(100, 110), max_tokens=6))
    plan = drive.step()
    assert plan is not None
    assert [item.seq_id for item in plan.items] == [1], "a block is left, but it is the running one's"
    drive.run()
    assert drive.scheduler.stats().preemptions == 0


def test_a_pool_for_one_and_a_half_serves_sixty_four():
    drive = driver(num_blocks=9, max_num_batched_tokens=16)
    for key in range(64):
        drive.add(make_request(key, range(key, key + 9), max_tokens=14, seed=key, num_choices=1 + key % 2))
    drive.run()
    for (key, choice), got in drive.outputs.items():
        assert got.token_ids == solo_tokens(range(key, key + 9), key, choice, 14, VOCAB)
    assert len(drive.outputs) == 96
