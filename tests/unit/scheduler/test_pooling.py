"""Pooled prompts through the scheduler: one vector, no token, whole for an encoder, in chunks for a decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferd.config import CacheConfig, SchedulerConfig
from inferd.request import CacheParams, FinishReason, PoolingParams, Request, SamplingParams, StopParams
from inferd.scheduler.limits import Capacity
from inferd.scheduler.scheduler import Scheduler
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info, fake_vector
from inferd.testing.requests import Driver, make_request


def pooled(key: int, length: int, **fields: object) -> Request:
    params = PoolingParams(kind="mean", num_tokens=length)
    stop = StopParams(max_tokens=0)
    cache = CacheParams(read=False)
    return make_request(key, [(key + i) % 900 for i in range(length)], stop=stop, pooling=params, cache=cache, **fields)


def vector_of(driver: Driver, key: int) -> bytes:
    prompt = driver.choice(key).prompt
    assert prompt is not None
    return prompt.vector


def test_a_vector_comes_with_the_last_chunk_and_nothing_else() -> None:
    driver = Driver(config=SchedulerConfig(max_num_batched_tokens=16))
    requests = [pooled(1, 40), pooled(2, 3)]
    driver.add(*requests)
    driver.run()
    assert [len(plan.items[0].token_ids) for plan in driver.plans][:2] == [16, 16]
    for request in requests:
        choice = driver.choice(request.key)
        assert (choice.token_ids, choice.finish, choice.error) == ([], FinishReason.MAX_TOKENS, None)
        assert vector_of(driver, request.key) == fake_vector(request.prompt_token_ids)


def test_a_vector_that_is_not_finite_fails_its_own_request() -> None:
    driver = Driver(executor=FakeExecutor(behaviour=Behaviour(nan_seeds=(5,))))
    driver.add(pooled(1, 4, sampling=SamplingParams(seed=5)), pooled(2, 4))
    driver.run()
    assert driver.choice(1).error == "NUMERIC_ERROR"
    assert vector_of(driver, 2)


def test_preemption_starts_the_vector_anew() -> None:
    driver = Driver(info=fake_info(num_blocks=12), config=SchedulerConfig(max_num_batched_tokens=4))
    driver.add(pooled(1, 40))
    driver.step()
    driver.add(make_request(2, range(30), priority=1, max_tokens=2))
    driver.run()
    assert driver.scheduler.stats().preemptions == 1
    assert vector_of(driver, 1) == fake_vector([(1 + i) % 900 for i in range(40)])


@pytest.fixture
def encoder() -> Driver:
    """An executor that says what an encoder's does: a block is a place, a prompt comes whole."""
    info = replace(fake_info(num_blocks=2 * 4, block_size=64, max_context_tokens=64), whole_prompts=True)
    driver = Driver(executor=FakeExecutor(info))
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=32)
    places = Capacity(info.num_blocks, info.block_size, info.max_context_tokens, info.vocab_size, whole_prompts=True)
    driver.scheduler = Scheduler(config, CacheConfig(), places)
    return driver


def test_an_encoder_gets_every_prompt_whole(encoder: Driver) -> None:
    lengths = [20, 12, 1, 64, 30, 2, 2, 2, 2, 2]
    encoder.add(*(pooled(key, length) for key, length in enumerate(lengths)))
    encoder.run()
    for plan in encoder.plans:
        assert len(plan.items) <= 4
        assert plan.num_tokens <= 32 or len(plan.items) == 1
        assert all(item.start == 0 for item in plan.items)
    computed = [len(item.token_ids) for plan in encoder.plans for item in plan.items]
    assert sorted(computed) == sorted(lengths)
    assert all(vector_of(encoder, key) for key in range(len(lengths)))


def test_an_encoder_finds_no_prefix(encoder: Driver) -> None:
    twice = [make_request(key, range(64), stop=StopParams(max_tokens=0),
                          pooling=PoolingParams(kind="cls", num_tokens=64)) for key in (1, 2)]  # fmt: skip
    encoder.add(twice[0])
    encoder.run()
    encoder.add(twice[1])
    encoder.run()
    assert encoder.scheduler.stats().prefix_hits == 0
    assert encoder.scheduler.stats().computed_tokens == 128
