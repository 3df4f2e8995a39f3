"""One behaviour per test: batching, chunks, prefix hits, ends. Tokens are those of the fake's arithmetic."""

from __future__ import annotations

import pytest

from inferd.config import CacheConfig, SchedulerConfig
from inferd.request import CacheParams, FinishReason, LogprobParams, SamplingParams, StopParams
from inferd.step import SequenceResult, StepResult
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info, fake_logprobs, next_token, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 1000


def driver(num_blocks: int = 64, context: int = 128, behaviour: Behaviour | None = None, **config: object) -> Driver:
    executor = FakeExecutor(fake_info(num_blocks, 4, context, VOCAB), behaviour or Behaviour())
    return Driver(config=SchedulerConfig(**config), executor=executor)  # type: ignore[arg-type]


def shapes(drive: Driver) -> list[list[tuple[int, int, int]]]:
    """(sequence, start, tokens) of each item of each plan."""
    return [[(item.seq_id, item.start, len(item.token_ids)) for item in plan.items] for plan in drive.plans]


def test_one_request_alone():
    drive = driver()
    drive.add(make_request(1, range(5), max_tokens=3, seed=9))
    drive.run()
    got = drive.choice(1)
    assert got.token_ids == solo_tokens(range(5), 9, 0, 3, VOCAB)
    assert got.finish is FinishReason.MAX_TOKENS
    assert shapes(drive) == [[(1, 0, 5)], [(1, 5, 1)], [(1, 6, 1)]]
    assert drive.scheduler.stats().blocks_used == 0


def test_the_executor_hears_of_new_and_of_dropped_sequences_once():
    drive = driver()
    drive.add(make_request(1, range(5), max_tokens=2))
    drive.run()
    drive.add(make_request(2, range(5), max_tokens=1))
    drive.run()
    assert [[new.seq_id for new in plan.new] for plan in drive.plans] == [[1], [], [2]]
    assert [plan.dropped for plan in drive.plans] == [[], [], [1]]
    assert [plan.step for plan in drive.plans] == [1, 2, 3]


def test_a_running_sequence_gets_block_ids_only_when_it_grows():
    drive = driver()
    drive.add(make_request(1, range(6), max_tokens=7))
    drive.run()
    assert [len(plan.new[0].block_ids) for plan in drive.plans if plan.new] == [2]
    grown = [(plan.items[0].start, len(plan.items[0].new_block_ids)) for plan in drive.plans]
    assert grown == [(0, 0), (6, 0), (7, 0), (8, 1), (9, 0), (10, 0), (11, 0)]


def test_prompts_are_cut_to_the_budget_and_running_ones_keep_their_pace():
    drive = driver(max_num_batched_tokens=8)
    drive.add(make_request(1, range(5), max_tokens=6))
    drive.step()
    drive.add(make_request(2, range(100, 120), max_tokens=2))
    drive.run()
    assert shapes(drive)[1:5] == [
        [(1, 5, 1), (2, 0, 7)],
        [(1, 6, 1), (2, 7, 7)],
        [(1, 7, 1), (2, 14, 6)],
        [(1, 8, 1), (2, 20, 1)],
    ]
    assert drive.choice(1).token_ids == solo_tokens(range(5), 0, 0, 6, VOCAB)
    assert drive.choice(2).token_ids == solo_tokens(range(100, 120), 0, 0, 2, VOCAB)


def test_items_of_one_token_come_first():
    drive = driver(max_num_batched_tokens=16)
    drive.add(make_request(1, range(20), max_tokens=3), make_request(2, [5], max_tokens=3))
    drive.run()
    for plan in drive.plans:
        lengths = [len(item.token_ids) for item in plan.items]
        assert lengths == sorted(lengths, key=lambda length: length != 1)
    assert any(len(plan.items) == 2 and len(plan.items[1].token_ids) > 1 for plan in drive.plans)


def test_without_chunked_prefill_a_prompt_runs_whole():
    drive = driver(max_num_batched_tokens=8, chunked_prefill=False)
    drive.add(make_request(1, range(5), max_tokens=5), make_request(2, range(10, 14), max_tokens=1))
    drive.add(make_request(3, range(100, 130), max_tokens=1), make_request(4, range(20, 24), max_tokens=1))
    drive.run()
    assert shapes(drive) == [
        [(1, 0, 5)],
        [(1, 5, 1), (2, 0, 4)],
        [(1, 6, 1), (3, 0, 30)],
        [(1, 7, 1), (4, 0, 4)],
        [(1, 8, 1)],
    ]


def test_seats_bound_the_running_sequences():
    drive = driver(max_num_seqs=2)
    for key in range(5):
        drive.add(make_request(key, range(3), max_tokens=3))
    while drive.scheduler.has_work:
        plan = drive.step()
        assert plan is None or len(plan.items) <= 2
    assert all(len(drive.choice(key).token_ids) == 3 for key in range(5))


def test_waiting_order():
    drive = driver(max_num_seqs=1)
    drive.add(
        make_request(1, [1], max_tokens=1),
        make_request(2, [1], max_tokens=1, deadline=2000.0),
        make_request(3, [1], max_tokens=1, priority=1),
    )
    drive.run()
    assert [plan.items[0].seq_id for plan in drive.plans] == [3, 2, 1]


def test_prefix_hit_costs_only_the_rest():
    drive = driver()
    drive.add(make_request(1, range(10), max_tokens=1))
    drive.run()
    drive.add(make_request(2, [*range(10), 10, 11], max_tokens=2))
    drive.run()
    assert shapes(drive)[1] == [(2, 8, 4)]
    prompt = drive.choice(2).prompt
    assert prompt is not None
    assert prompt.num_cached_tokens == 8
    assert drive.choice(2).token_ids == solo_tokens(range(12), 0, 0, 2, VOCAB)
    stats = drive.scheduler.stats()
    assert (stats.prefix_queries, stats.prefix_hits, stats.computed_tokens) == (22, 8, 10 + 4 + 1)


def test_a_whole_prompt_in_the_cache_computes_one_token():
    drive = driver()
    for key in (1, 2):
        drive.add(make_request(key, range(9), max_tokens=1))
        drive.run()
    assert shapes(drive)[1] == [(2, 8, 1)]
    assert drive.plans[1].items[0].choices == (0,)
    assert drive.choice(2).token_ids == drive.choice(1).token_ids


def test_cleared_and_salted_prefixes_are_computed_again():
    drive = driver()
    salted = CacheParams(salt="tenant")
    for key, cache in ((1, salted), (2, CacheParams()), (3, salted)):
        drive.add(make_request(key, range(9), max_tokens=1, cache=cache))
        drive.run()
    assert [len(plan.items[0].token_ids) for plan in drive.plans] == [9, 9, 1]
    assert drive.scheduler.clear_prefix_cache("tenant") == 2
    drive.add(make_request(4, range(9), max_tokens=1, cache=salted))
    drive.run()
    assert len(drive.plans[-1].items[0].token_ids) == 9


def test_no_prefix_caching():
    drive = Driver(fake_info(), cache=CacheConfig(prefix_caching=False))
    for key in (1, 2):
        drive.add(make_request(key, range(9), max_tokens=1))
        drive.run()
    assert [len(plan.items[0].token_ids) for plan in drive.plans] == [9, 9]
    assert drive.scheduler.stats().prefix_queries == 0


def test_eos_stop_token_and_length():
    tokens = solo_tokens(range(5), 0, 0, 6, VOCAB)
    drive = driver()
    drive.add(make_request(1, range(5), stop=StopParams(max_tokens=6, eos_token_ids=(tokens[2],))))
    drive.add(make_request(2, range(5), stop=StopParams(max_tokens=6, stop_token_ids=(tokens[3],))))
    drive.add(make_request(3, range(5), stop=StopParams(max_tokens=6, eos_token_ids=(tokens[5],))))
    drive.run()
    assert [(len(drive.choice(key).token_ids), drive.choice(key).finish) for key in (1, 2, 3)] == [
        (3, FinishReason.EOS),
        (4, FinishReason.STOP_TOKEN),
        (6, FinishReason.EOS),
    ]


def test_context_full():
    drive = driver(context=16)
    drive.add(make_request(1, range(14), max_tokens=50))
    drive.add(make_request(2, range(16), max_tokens=50))
    drive.add(make_request(3, range(17), max_tokens=50))
    drive.run()
    assert (len(drive.choice(1).token_ids), drive.choice(1).finish) == (2, FinishReason.CONTEXT_FULL)
    assert (drive.choice(2).token_ids, drive.choice(2).finish) == ([], FinishReason.CONTEXT_FULL)
    assert drive.choice(3).error == "CONTEXT_LENGTH_EXCEEDED"


def test_the_pool_bounds_the_context():
    drive = driver(num_blocks=3, context=1000)
    assert drive.scheduler.limits.max_context == 12
    drive.add(make_request(1, range(5), max_tokens=50))
    drive.run()
    assert (len(drive.choice(1).token_ids), drive.choice(1).finish) == (7, FinishReason.CONTEXT_FULL)


@pytest.mark.parametrize("choices", [1, 3])
def test_max_tokens_zero_computes_the_prompt_only(choices):
    drive = driver(max_num_batched_tokens=4)
    drive.add(make_request(1, range(9), max_tokens=0, num_choices=choices, prompt_logprobs=LogprobParams(top_n=1)))
    drive.run()
    assert shapes(drive) == [[(1, 0, 4)], [(1, 4, 4)], [(1, 8, 1)]]
    for choice in range(choices):
        assert (drive.choice(1, choice).token_ids, drive.choice(1, choice).finish) == ([], FinishReason.MAX_TOKENS)
    prompt = drive.choice(1).prompt
    assert prompt is not None
    assert [entry.top_token_ids for entry in prompt.prompt_logprobs] == [[token] for token in range(1, 9)]


def test_min_tokens_block_the_end():
    tokens = solo_tokens(range(5), 0, 0, 1, VOCAB)
    drive = driver()
    stop = StopParams(max_tokens=5, min_tokens=2, eos_token_ids=(tokens[0],))
    drive.add(make_request(1, range(5), stop=stop))
    drive.run()
    assert drive.plans[0].new[0].blocked_token_ids == (tokens[0],)
    assert drive.choice(1).token_ids[0] == tokens[0] + 1
    assert len(drive.choice(1).token_ids) == 5


def test_an_end_comes_once_min_tokens_are_out():
    drive = driver(behaviour=Behaviour(script=(7,)))
    drive.add(make_request(1, range(5), stop=StopParams(max_tokens=9, min_tokens=2, eos_token_ids=(7,))))
    drive.run()
    assert drive.choice(1).token_ids == [8, 8, 7]
    assert drive.choice(1).finish is FinishReason.EOS


def test_resumed_tokens_count_as_output():
    whole = solo_tokens(range(5), 3, 0, 6, VOCAB)
    drive = driver()
    stop = StopParams(max_tokens=6, min_tokens=5, eos_token_ids=(whole[4],))
    drive.add(make_request(1, [*range(5), *whole[:4]], seed=3, stop=stop, resumed_tokens=4))
    drive.add(make_request(2, [*range(5), *whole[:4]], seed=3, max_tokens=6, resumed_tokens=4))
    drive.add(make_request(3, [*range(5), *whole], seed=3, max_tokens=6, resumed_tokens=6))
    drive.run()
    new = drive.plans[0].new[0]
    assert (new.num_output_tokens, new.min_tokens) == (4, 5)
    assert drive.choice(1).token_ids[0] == whole[4] + 1, "the fifth output token may not be the end"
    assert drive.choice(2).token_ids == whole[4:]
    assert (drive.choice(3).token_ids, drive.choice(3).finish) == ([], FinishReason.MAX_TOKENS)


def test_history_goes_to_samplers_that_need_it():
    drive = driver(max_num_batched_tokens=4)
    penalty = SamplingParams(temperature=0.0, presence_penalty=1.0)
    drive.add(make_request(1, range(5), max_tokens=1, sampling=penalty), make_request(2, range(3), max_tokens=1))
    drive.run()
    assert {new.seq_id: new.history for plan in drive.plans for new in plan.new} == {1: [0, 1, 2, 3, 4], 2: []}


def test_a_numeric_error_fails_its_choice_alone():
    drive = driver(behaviour=Behaviour(nan_seeds=(13,)))
    drive.add(make_request(1, range(5), seed=13), make_request(2, range(5), seed=1))
    drive.run()
    assert (drive.choice(1).error, drive.choice(1).token_ids) == ("NUMERIC_ERROR", [])
    assert drive.choice(2).token_ids == solo_tokens(range(5), 1, 0, 4, VOCAB)
    assert drive.scheduler.stats().blocks_used == 0


def test_blocks_behind_a_numeric_error_are_never_served_from_the_cache():
    drive = driver(behaviour=Behaviour(nan_seeds=(13,)))
    drive.add(make_request(1, range(30), seed=13))
    drive.run()
    assert drive.choice(1).error == "NUMERIC_ERROR"
    drive.add(make_request(2, range(30), seed=1))
    drive.run()
    assert drive.scheduler.stats().prefix_hits == 0
    drive.add(make_request(3, range(30), seed=2))
    drive.run()
    assert drive.scheduler.stats().prefix_hits > 0


def test_logprobs_travel_with_their_tokens():
    drive = driver()
    params = LogprobParams(top_n=2, token_ids=(5,))
    drive.add(make_request(1, range(5), max_tokens=3, logprobs=params))
    drive.run()
    got = drive.choice(1)
    assert got.logprobs == [fake_logprobs(token, params, VOCAB) for token in got.token_ids]


@pytest.mark.parametrize("chunk", [2, 3, 7, 64])
def test_prompt_logprobs_are_whole_whatever_the_chunks(chunk):
    drive = driver(max_num_batched_tokens=chunk)
    params = LogprobParams(top_n=1)
    drive.add(make_request(1, range(12), max_tokens=1))
    drive.run()
    drive.add(make_request(2, range(12), max_tokens=2, prompt_logprobs=params))
    drive.run()
    prompt = drive.choice(2).prompt
    assert prompt is not None
    assert prompt.num_cached_tokens == 0
    assert prompt.prompt_logprobs == [fake_logprobs(token, params, VOCAB) for token in range(1, 12)]


def test_prompt_output_times():
    drive = driver(max_num_seqs=1, max_num_batched_tokens=4)
    drive.add(make_request(1, range(3), max_tokens=2, arrival=990.0), make_request(2, range(6), arrival=992.0))
    while drive.scheduler.has_work:
        drive.step()
        drive.now += 1.0
    prompt = drive.choice(2).prompt
    assert prompt is not None
    assert (prompt.queue_s, prompt.prefill_s) == (10.0, 1.0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"prompt": []}, "INVALID_PARAMETER"),
        ({"prompt": [VOCAB]}, "INVALID_PARAMETER"),
        ({"prompt": [-1]}, "INVALID_PARAMETER"),
        ({"prompt": [1], "num_choices": 0}, "INVALID_PARAMETER"),
        ({"prompt": [1], "resumed_tokens": 1}, "INVALID_PARAMETER"),
        ({"prompt": [1] * 129}, "CONTEXT_LENGTH_EXCEEDED"),
    ],
)
def test_a_request_that_can_never_run_ends_with_an_error(fields, reason):
    drive = driver()
    drive.add(make_request(1, **fields))
    assert drive.scheduler.has_work
    drive.run()
    assert drive.choice(1).error == reason
    assert drive.plans == []


def test_a_key_that_is_live_is_refused():
    drive = driver()
    drive.add(make_request(1, [1]))
    with pytest.raises(ValueError, match="live already"):
        drive.add(make_request(1, [2]))
    drive.run()
    drive.add(make_request(1, [1]))


@pytest.mark.parametrize("wrong", ["step", "missing", "order", "samples"])
def test_a_result_of_another_plan_is_refused(wrong):
    drive = driver()
    drive.add(make_request(1, [1]), make_request(2, [1]))
    plan = drive.scheduler.schedule(0.0)
    assert plan is not None
    result = drive.executor.execute(plan)
    results = {
        "step": result.results,
        "missing": result.results[:1],
        "order": result.results[::-1],
        "samples": [SequenceResult(each.seq_id, []) for each in result.results],
    }[wrong]
    with pytest.raises(ValueError, match=r"results|samples"):
        drive.scheduler.commit(plan, StepResult(plan.step + (wrong == "step"), results, 0.0), 0.0)


def test_next_token_by_hand():
    assert next_token([4, 0], seed=2, choice=3, vocab_size=1000) == ((1 * 5 + 2 * 1) * 31 + 14 + 39) % 1000
