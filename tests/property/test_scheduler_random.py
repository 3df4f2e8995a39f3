"""Random operations on a scheduler whose pool is too small: after each the books balance, and at the end every choice
got the tokens that it gets alone."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from inferd.cache_groups import FULL, CacheGroups
from inferd.config import CacheConfig, SchedulerConfig, SpeculativeConfig
from inferd.request import CacheParams, FinishReason, LogprobParams, Request, SamplingParams, StopParams, Tenant
from inferd.step import PENDING
from inferd.testing.fake_executor import FakeExecutor, fake_info, fake_logprobs, sight, solo_tokens
from inferd.testing.requests import Driver, make_request

VOCAB = 61  # small: end-of-text comes up often
CONTEXT = 40
MAX_LIVE = 14


@dataclass
class Setting:
    """One engine of random shape and what was asked of it."""

    rng: random.Random
    drive: Driver
    live: dict[int, Request] = field(default_factory=dict)
    asked: dict[int, Request] = field(default_factory=dict)
    aborted: set[tuple[int, int]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


def random_setting(rng: random.Random, windows: tuple[int, ...] = FULL) -> Setting:
    block_size = rng.choice([1, 2, 4, 7])
    depth = rng.choice([1, 1, 2, 3])
    looks_ahead = depth == 1 and rng.random() < 0.6
    config = SchedulerConfig(
        max_num_seqs=rng.choice([1, 2, 3, 6, 12]),
        max_num_batched_tokens=rng.choice([1, 3, 5, 16, 64]),
        chunked_prefill=rng.random() < 0.8,
        speculative=None if rng.random() < 0.5 else SpeculativeConfig(num_speculative_tokens=5, prompt_lookup_min=1),
    )
    chunk = config.max_num_batched_tokens if config.chunked_prefill else max(config.max_num_batched_tokens, CONTEXT)
    fitting = CacheGroups(windows, block_size, chunk).blocks_for(CONTEXT)
    info = fake_info(rng.randint(fitting, 2 * fitting), block_size, CONTEXT, VOCAB, depth, looks_ahead, windows)
    cache = CacheConfig(prefix_caching=rng.random() < 0.85)
    return Setting(rng, Driver(config=config, cache=cache, executor=FakeExecutor(info)))


def random_request(setting: Setting, key: int) -> Request:
    rng, now = setting.rng, setting.drive.now
    base = rng.randint(0, 1)
    length = rng.randint(1, CONTEXT - 4)
    prompt = [(base + position) % VOCAB for position in range(length)]
    if rng.random() < 0.3:
        prompt[rng.randrange(length)] = rng.randrange(VOCAB)
    max_tokens = rng.choice([0, 1, 2, 5, 12, 30])
    stop = StopParams(
        max_tokens=max_tokens,
        min_tokens=rng.choice([0, 0, 0, min(2, max_tokens)]),
        eos_token_ids=(rng.randrange(VOCAB),) if rng.random() < 0.5 else (),
        stop_token_ids=tuple(rng.sample(range(VOCAB), 2)) if rng.random() < 0.3 else (),
        time_limit_s=rng.uniform(5, 80) if rng.random() < 0.1 else None,
    )
    return make_request(
        key,
        prompt,
        stop=stop,
        sampling=SamplingParams(
            temperature=0.0, seed=rng.randrange(1 << 64), presence_penalty=0.5 if rng.random() < 0.25 else 0.0
        ),
        num_choices=rng.choice([1, 1, 1, 2, 3, 4]),
        tenant=Tenant(rng.choice("aaab"), rng.choice(["", "x"])),
        priority=rng.choice([0, 0, 0, -1, 1]),
        logprobs=LogprobParams(top_n=1) if rng.random() < 0.2 else None,
        prompt_logprobs=LogprobParams() if rng.random() < 0.2 else None,
        cache=CacheParams(salt=rng.choice(["", "", "a", "b"]), read=rng.random() < 0.9, write=rng.random() < 0.9),
        arrival=now,
        deadline=now + rng.uniform(1, 100) if rng.random() < 0.1 else None,
        queue_deadline=now + rng.uniform(1, 30) if rng.random() < 0.1 else None,
        resumed_tokens=rng.randrange(length) if rng.random() < 0.1 else 0,
    )


def operate(setting: Setting, key: int) -> None:
    """One random operation; most are steps, or nothing would ever finish."""
    rng, drive = setting.rng, setting.drive
    kind = rng.choices(["step", "add", "abort", "abort choice", "clear", "reclaim"], [60, 22, 4, 4, 2, 4])[0]
    setting.live = {each: request for each, request in setting.live.items() if not has_ended(setting, request)}
    if kind == "add" and len(setting.live) < MAX_LIVE:
        request = setting.live[key] = setting.asked[key] = random_request(setting, key)
        drive.add(request)
    elif kind.startswith("abort") and setting.live:
        request = rng.choice(list(setting.live.values()))
        choice = rng.randrange(request.num_choices) if kind == "abort choice" else None
        drive.scheduler.abort(request.key, choice)
        stopped = range(request.num_choices) if choice is None else [choice]
        setting.aborted |= {(request.key, each) for each in stopped if not drive.outputs[request.key, each].num_ends}
    elif kind == "clear":
        drive.scheduler.clear_prefix_cache(rng.choice([None, "", "a", "b"]))
    elif kind == "reclaim":
        drive.executor.give_back(drive.scheduler.reclaim(rng.randrange(3)))
    else:  # with an audit of its own
        kind = "step"
        drive.now += rng.uniform(0, 2)
        drive.step()
    if kind != "step":
        drive.scheduler.check()
    setting.counts[kind] += 1


def has_ended(setting: Setting, request: Request) -> bool:
    return all(
        (request.key, choice) in setting.aborted or setting.drive.outputs[request.key, choice].num_ends
        for choice in range(request.num_choices)
    )


def alone(request: Request, choice: int, window: int) -> tuple[list[int], FinishReason]:
    """Tokens and finish of a choice that nothing disturbs, by arithmetic alone."""
    prompt, stop = request.prompt_token_ids, request.stop
    ends = set(stop.eos_token_ids + stop.stop_token_ids)
    tokens: list[int] = []
    while True:
        num_output = len(tokens) + request.resumed_tokens
        if num_output >= stop.max_tokens:
            return tokens, FinishReason.MAX_TOKENS
        if len(prompt) + len(tokens) >= CONTEXT:
            return tokens, FinishReason.CONTEXT_FULL
        (token,) = solo_tokens(prompt + tokens, request.sampling.seed, choice, 1, VOCAB, window)
        while token in ends and num_output < stop.min_tokens:
            token = (token + 1) % VOCAB
        tokens.append(token)
        if token in ends:
            return tokens, FinishReason.EOS if token in stop.eos_token_ids else FinishReason.STOP_TOKEN


def judge(setting: Setting) -> None:
    """Every choice ended once, as it would have alone; cut short ones got a prefix of that."""
    window = sight(setting.drive.executor.info.windows)
    for request in setting.asked.values():
        prompts = 0
        for choice in range(request.num_choices):
            got = setting.drive.outputs[request.key, choice]
            tokens, finish = alone(request, choice, window)
            prompts += got.prompt is not None
            was_aborted = (request.key, choice) in setting.aborted
            assert got.num_ends == (0 if was_aborted else 1), (request, choice, got)
            if was_aborted or got.error in ("QUEUE_TIMEOUT", "DEADLINE_EXCEEDED"):
                assert got.token_ids == tokens[: len(got.token_ids)]
            elif got.finish is FinishReason.TIME_LIMIT:
                assert request.stop.time_limit_s is not None
                assert got.token_ids == tokens[: len(got.token_ids)]
            else:
                assert (got.token_ids, got.finish, got.error) == (tokens, finish, None), (request, choice)
                setting.counts[f"finish {finish.name}"] += 1
            if request.logprobs is not None:
                assert got.logprobs == [fake_logprobs(token, request.logprobs, VOCAB) for token in got.token_ids]
            if request.prompt_logprobs is not None and got.prompt is not None and got.token_ids:
                assert len(got.prompt.prompt_logprobs) == len(request.prompt_token_ids) - 1
        assert prompts <= 1


def play(seed: int, operations: int, windows: tuple[int, ...] = FULL) -> Counter[str]:
    """A random engine under random operations. Returns what happened how often."""
    setting = random_setting(random.Random(seed), windows)
    for number in range(operations):
        operate(setting, number)
    setting.drive.run()
    judge(setting)
    drive = setting.drive
    stats = drive.scheduler.stats()
    assert (stats.running, stats.waiting, stats.waiting_prompt_tokens, stats.blocks_used) == (0, 0, 0, 0)
    assert len(drive.scheduler._registry._timers) == 0
    assert drive.scheduler._roster.accounts.num_live == 0
    return setting.counts + Counter(
        preemptions=stats.preemptions,
        hits=stats.prefix_hits,
        copies=sum(len(plan.copies) for plan in drive.plans),
        ahead=sum(item.token_ids == [PENDING] for plan in drive.plans for item in plan.items),
        choices=sum(request.num_choices for request in setting.asked.values()),
    )


def play_many(seeds: range, operations: int, windows: tuple[int, ...] = FULL) -> Counter[str]:
    total: Counter[str] = Counter()
    for seed in seeds:
        total.update(play(seed, operations, windows))
    return total


def test_ten_thousand_operations(record_property):
    total = play_many(range(40), 250)
    for name, value in sorted(total.items()):
        record_property(name, value)
    assert (
        total["step"] + total["add"] + total["abort"] + total["abort choice"] + total["clear"] + total["reclaim"]
        == 10_000
    )
    for name, least in (("preemptions", 300), ("ahead", 1000), ("copies", 100), ("hits", 1000), ("choices", 1500)):
        assert total[name] >= least, f"the operations hardly reach {name}: {total}"
    for finish in ("EOS", "STOP_TOKEN", "MAX_TOKENS", "CONTEXT_FULL"):
        assert total[f"finish {finish}"] > 0


@pytest.mark.parametrize("windows", [(0, 6), (0, 9, 9, 3), (5,), (12, 3)])
def test_groups_with_windows(windows: tuple[int, ...]) -> None:
    total = play_many(range(30), 150, windows)
    for name, least in (("preemptions", 50), ("ahead", 100), ("copies", 20), ("hits", 200), ("choices", 500)):
        assert total[name] >= least, f"the operations hardly reach {name}: {total}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_many_more_operations():
    total = play_many(range(1000, 3000), 250)
    assert total["preemptions"] > 10_000
