"""Speculation: fewer steps, the same tokens, and rest where guesses are wrong."""

from __future__ import annotations

from itertools import pairwise

import pytest

from inferd.config import CacheConfig, SchedulerConfig, SpeculativeConfig
from inferd.request import FinishReason, LogprobParams, Request, SamplingParams, StopParams, Tenant
from inferd.scheduler.speculation import CATCH_UP, FREE_ROWS, PromptLookup
from inferd.step import StepPlan
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info, fake_logprobs
from inferd.testing.requests import Driver, make_request

CYCLE = (11, 12, 13, 14, 15)
ON = SpeculativeConfig(num_speculative_tokens=6)


def driver(
    script: tuple[int, ...] = CYCLE,
    speculative: SpeculativeConfig | None = ON,
    num_blocks: int = 64,
    depth: int = 1,
    budget: int = 512,
) -> Driver:
    info = fake_info(num_blocks=num_blocks, pipeline_depth=depth)
    config = SchedulerConfig(speculative=speculative, max_num_batched_tokens=budget)
    return Driver(config=config, cache=CacheConfig(), executor=FakeExecutor(info, Behaviour(script=script)))


def cycle(length: int) -> list[int]:
    return [CYCLE[index % len(CYCLE)] for index in range(length)]


def num_guesses(plans: list[StepPlan]) -> int:
    return sum(item.guesses for plan in plans for item in plan.items)


def test_a_repetition_takes_fewer_steps_and_gives_the_same_tokens() -> None:
    plain, quick = driver(speculative=None), driver()
    for drive in (plain, quick):
        drive.add(make_request(1, [1, 2, 3], max_tokens=60))
        drive.run()
    assert quick.choice(1).token_ids == plain.choice(1).token_ids == cycle(60)
    assert quick.choice(1).finish is FinishReason.MAX_TOKENS
    assert len(quick.plans) < len(plain.plans) / 3
    stats = quick.scheduler.stats()
    assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens == num_guesses(quick.plans)


def test_every_output_says_what_was_guessed() -> None:
    drive = driver()
    drive.add(make_request(1, [1, 2, 3], max_tokens=40))
    outputs = []
    while drive.scheduler.has_work:
        plan = drive.scheduler.schedule(drive.now)
        assert plan is not None
        outputs += drive.scheduler.commit(plan, drive.executor.execute(plan), drive.now)
    assert [token for output in outputs for token in output.token_ids] == cycle(40)
    assert sum(output.accepted for output in outputs) == drive.scheduler.stats().accepted_draft_tokens > 0
    assert all(len(output.token_ids) == output.accepted + 1 for output in outputs)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_many_sequences_in_a_small_pool(depth: int) -> None:
    """Guesses take no block from anybody; who is preempted goes on where it was."""
    drive = driver(num_blocks=40, depth=depth)
    for key in range(6):
        drive.add(make_request(key, [key + 1] * (3 + key), max_tokens=50))
    drive.run()
    assert all(drive.choice(key).token_ids == cycle(50) for key in range(6))
    assert drive.scheduler.stats().preemptions > 0
    assert num_guesses(drive.plans) > 0


def test_a_stop_token_among_right_guesses_ends_the_choice() -> None:
    script = (*CYCLE * 6, 99, *CYCLE * 2)
    for eos, stop, reason in (((99,), (), FinishReason.EOS), ((), (99,), FinishReason.STOP_TOKEN)):
        drive = driver(script)
        prompt = [*CYCLE, 99, 98]
        drive.add(make_request(1, prompt, stop=StopParams(max_tokens=60, eos_token_ids=eos, stop_token_ids=stop)))
        drive.run()
        assert drive.choice(1).token_ids == list(script[:31])
        assert drive.choice(1).finish is reason


def test_max_tokens_is_kept_to_the_token() -> None:
    for length in range(1, 24):
        drive = driver()
        drive.add(make_request(1, cycle(10), max_tokens=length))
        drive.run()
        assert drive.choice(1).token_ids == cycle(length)


def test_logprobs_come_with_every_token() -> None:
    drive = driver()
    params = LogprobParams(top_n=2)
    drive.add(make_request(1, [1, 2], max_tokens=30, logprobs=params))
    drive.run()
    assert drive.choice(1).logprobs == [fake_logprobs(token, params, 1000) for token in cycle(30)]
    assert num_guesses(drive.plans) > 0


def test_choices_of_one_prompt_each_have_guesses_of_their_own() -> None:
    drive = driver()
    drive.add(make_request(1, [1, 2, 3], max_tokens=40, num_choices=3))
    drive.run()
    assert all(drive.choice(1, choice).token_ids == cycle(40) for choice in range(3))
    assert num_guesses(drive.plans) > 0


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(presence_penalty=0.5), SamplingParams(bad_words=((7, 8),))],
    ids=["penalty", "bad words"],
)
def test_draws_that_need_the_tokens_before_them_get_no_guesses(sampling: SamplingParams) -> None:
    drive = driver()
    drive.add(make_request(1, [1, 2, 3], max_tokens=40, sampling=sampling))
    drive.run()
    assert drive.choice(1).token_ids == cycle(40)
    assert num_guesses(drive.plans) == 0


def test_a_step_with_a_prompt_and_a_full_budget_has_no_guesses() -> None:
    drive = driver(budget=2)
    drive.add(make_request(1, [1], max_tokens=30), make_request(2, [1], max_tokens=30))
    drive.run()
    assert all(plan.num_tokens <= 2 for plan in drive.plans)
    assert drive.choice(1).token_ids == drive.choice(2).token_ids == cycle(30)


def test_logits_that_are_not_finite_fail_the_request_alone() -> None:
    info = fake_info()
    executor = FakeExecutor(info, Behaviour(script=CYCLE, nan_seeds=(9,)))
    drive = Driver(config=SchedulerConfig(speculative=ON), executor=executor)
    bad: Request = make_request(1, cycle(10), max_tokens=20, seed=9)
    drive.add(bad, make_request(2, cycle(10), max_tokens=20))
    drive.run()
    assert drive.choice(1).error == "NUMERIC_ERROR"
    assert drive.choice(2).token_ids == cycle(20)


def guess(speculator: PromptLookup, tokens: list[int], most: int, num_sequences: int) -> list[int]:
    speculator.read(tokens, len(tokens))
    return speculator.guess(tokens, most, num_sequences)


def test_the_longest_run_that_occurred_is_continued() -> None:
    speculator = PromptLookup(SpeculativeConfig(num_speculative_tokens=8, prompt_lookup_min=2, prompt_lookup_max=3))
    tokens = [1, 2, 3, 50, 51, 9, 2, 3, 60, 61, 1, 2, 3]
    assert guess(speculator, tokens, 8, 1) == [50, 51]  # 1 2 3 rather than the later 2 3
    assert guess(speculator, [7, 8, 9], 8, 1) == []


def test_a_run_that_reaches_to_the_end_goes_on() -> None:
    speculator = PromptLookup(SpeculativeConfig(num_speculative_tokens=8))
    assert guess(speculator, [4, 5, 4, 5, 4, 5], 2, 1) == [4, 5]
    speculator.note(2, 2)
    assert guess(speculator, [4, 5, 4, 5, 4, 5, 4, 5, 4], 8, 1) == [5, 4, 5, 4]


def test_wrong_guesses_end_guessing_for_a_while_and_then_for_longer() -> None:
    speculator = PromptLookup(ON)
    tokens = [1, 2] * 4
    rests = []
    for _ in range(400):
        guesses = guess(speculator, tokens, 8, 1)
        if guesses:
            speculator.note(len(guesses), 0)
            rests.append(len(tokens))
        tokens += [1, 2]
    gaps = [after - before for before, after in pairwise(rests) if after - before > 2]
    assert gaps == sorted(gaps)
    assert gaps[-1] >= 4 * gaps[0]
    assert len(rests) < 400 / 4


def test_what_pays_for_one_sequence_does_not_pay_among_many() -> None:
    tokens = [1, 2, 1, 2, 1, 2]
    assert guess(PromptLookup(ON), tokens, 8, 1)
    assert not guess(PromptLookup(ON), tokens, 8, 4 * FREE_ROWS)


def num_read(drive: Driver) -> int:
    """Entries that the only sequence's speculator has made of what it read."""
    (sequence,) = drive.scheduler.sequences()
    return len(sequence.speculator._follows) if sequence.speculator is not None else 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_cached", [False, True], ids=["computed", "found in the cache"])
def test_no_step_reads_a_long_prompt_at_once(is_cached: bool) -> None:
    prompt, budget = list(range(2400)), 400
    executor = FakeExecutor(fake_info(2000, max_context_tokens=3000, vocab_size=3000), Behaviour(script=prompt[:600]))
    config = SchedulerConfig(speculative=ON, max_num_batched_tokens=budget)
    drive = Driver(config=config, executor=executor)
    if is_cached:
        drive.add(make_request(1, prompt, max_tokens=1))
        drive.run()
    drive.add(make_request(2, prompt, max_tokens=40))
    drive.plans.clear()
    before, sizes = 0, 3  # runs of two, three and four tokens
    while drive.scheduler.has_work:
        plan = drive.step()
        assert plan is not None
        if drive.scheduler.has_work:
            assert num_read(drive) - before <= sizes * (plan.num_tokens + CATCH_UP)
            before = num_read(drive)
    assert drive.choice(2).token_ids == prompt[:40]
    assert num_guesses(drive.plans) > 0
    first = next(index for index, plan in enumerate(drive.plans) if any(item.guesses for item in plan.items))
    assert first <= 2400 // CATCH_UP + 5


def test_no_guess_follows_a_part_of_what_is_computed_again() -> None:
    """A sequence that was preempted gets one of its known tokens in a step that has room for more."""
    drive = driver(num_blocks=32, budget=4)
    drive.add(make_request(1, cycle(6), max_tokens=60), make_request(2, [7], max_tokens=99, tenant=Tenant("other")))
    for _ in range(12):
        drive.step()
    sequence = next(each for each in drive.scheduler.sequences() if each.key == 1)
    assert sequence.num_tokens > sequence.num_prompt_tokens
    drive.scheduler._roster.preempt(sequence)
    drive.scheduler.clear_prefix_cache()
    drive.run()
    assert drive.choice(1).token_ids == cycle(60)
