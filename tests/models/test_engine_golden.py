"""Scheduler and executor together on the demo model: what is generated never depends on how it was scheduled.

The oracle is tests/golden/demo_greedy.json, computed by transformers from the same file in float32.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig, SpeculativeConfig
from inferd.executor.factory import create_executor
from inferd.request import Request, SamplingParams, StopParams
from inferd.scheduler.limits import Capacity
from inferd.scheduler.scheduler import Scheduler
from inferd.step import StepPlan

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/demo_greedy.json").read_text())
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def executor(demo_gguf: Path, make_driver: Callable[[Path], Any]) -> Any:
    return make_driver(demo_gguf).executor


class Engine:
    """Requests in, tokens by key out; the clock is real, the processes are not."""

    def __init__(
        self,
        executor: Any,
        num_blocks: int | None = None,
        chunk: int = 512,
        speculative: SpeculativeConfig | None = None,
    ) -> None:
        info = executor.info
        capacity = Capacity(num_blocks or info.num_blocks, info.block_size, 2048, info.vocab_size)
        self.executor = executor
        config = SchedulerConfig(max_num_batched_tokens=chunk, speculative=speculative)
        self.scheduler = Scheduler(config, CacheConfig(), capacity)

    def run(self, *requests: Request) -> dict[int, list[int]]:
        for request in requests:
            self.scheduler.add(request)
        tokens: dict[int, list[int]] = {request.key: [] for request in requests}
        while self.scheduler.has_work:
            outputs = self.scheduler.expired(time.monotonic())
            if (plan := self.scheduler.schedule(time.monotonic())) is not None:
                outputs += self.scheduler.commit(plan, self.executor.execute(plan), time.monotonic())
                self.scheduler.check()
            for output in outputs:
                assert output.error is None
                tokens[output.key] += output.token_ids
        return tokens


@pytest.fixture
def make_engine(executor: Any) -> Any:
    """Engines over one executor, one after the other; each one's sequences are dropped before the next begins."""

    def make(**options: int) -> Engine:
        executor.execute(StepPlan(0, [], dropped=list(executor._worker._states)))
        return Engine(executor, **options)

    return make


def golden(count: int, length: int) -> list[Request]:
    return [
        Request(
            key=index,
            request_id=str(index),
            prompt_token_ids=case["prompt"],
            sampling=GREEDY,
            stop=StopParams(max_tokens=length),
        )
        for index, case in enumerate(GOLDEN[:count])
    ]


def expected(count: int, length: int) -> dict[int, list[int]]:
    return {index: case["tokens"][:length] for index, case in enumerate(GOLDEN[:count])}


def tight_pool(requests: list[Request]) -> int:
    """Blocks that let all prompts in, one block each to grow into, and no more: outputs of 32 tokens must preempt."""
    longest = max(len(request.prompt_token_ids) + request.stop.max_tokens for request in requests)
    blocks = sum(-(-len(request.prompt_token_ids) // 16) for request in requests) + len(requests)
    return max(blocks, longest // 16 + 2)


SIZES = [
    pytest.param(3, 36, id="fast"),
    pytest.param(20, 64, id="full", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize(("count", "length"), SIZES)
def test_greedy_tokens_under_preemption(make_engine: Any, count: int, length: int) -> None:
    requests = golden(count, length)
    engine = make_engine(num_blocks=tight_pool(requests))
    assert engine.run(*requests) == expected(count, length)
    assert engine.scheduler.stats().preemptions > 0


@pytest.mark.parametrize(("count", "length"), SIZES)
def test_greedy_tokens_as_prefix_cache_hits(make_engine: Any, count: int, length: int) -> None:
    engine = make_engine()
    first = engine.run(*golden(count, length))
    before = engine.scheduler.stats().prefix_hits
    assert engine.run(*golden(count, length)) == first == expected(count, length)
    assert engine.scheduler.stats().prefix_hits > before


@pytest.mark.parametrize(("count", "length"), SIZES)
def test_greedy_tokens_at_once_in_chunks_of_16(make_engine: Any, count: int, length: int) -> None:
    # A budget of 16 tokens a step cuts every prompt into chunks of at most 16, decodes riding along.
    assert make_engine(chunk=max(16, count + 1)).run(*golden(count, length)) == expected(count, length)


@pytest.mark.parametrize(
    ("others", "length"), [pytest.param(3, 36, id="fast"), pytest.param(31, 40, id="full", marks=pytest.mark.slow)]
)
def test_a_seed_gives_the_same_tokens_in_any_company(make_engine: Any, others: int, length: int) -> None:
    def seeded(key: int) -> Request:
        return Request(
            key=key,
            request_id=str(key),
            prompt_token_ids=GOLDEN[key % len(GOLDEN)]["prompt"],
            sampling=SamplingParams(temperature=0.9, top_p=0.95, top_k=50, seed=1000 + key),
            stop=StopParams(max_tokens=length),
        )

    alone = make_engine().run(seeded(0))[0]
    requests = [seeded(key) for key in range(others + 1)]
    assert make_engine().run(*requests)[0] == alone
    squeezed = make_engine(num_blocks=tight_pool(requests))
    assert squeezed.run(*requests)[0] == alone
    assert squeezed.scheduler.stats().preemptions > 0


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["greedy", "seeded"])
def test_speculation_changes_no_token(demo_gguf: Path, temperature: float) -> None:
    """On the native kernels, where a row's arithmetic does not depend on the rows beside it."""
    request = Request(
        key=0,
        request_id="repeats",
        prompt_token_ids=GOLDEN[0]["prompt"] * 3,
        sampling=SamplingParams(temperature=temperature, top_k=4, seed=5),
        stop=StopParams(max_tokens=40),
    )
    config = EngineConfig(
        model=ModelConfig(source="demo", path=str(demo_gguf)),
        cache=CacheConfig(num_blocks=64),
        device=DeviceConfig(device="cpu", kernel_backend="native", threads=2),
    )
    answers = []
    for speculative in (None, SpeculativeConfig(prompt_lookup_min=1)):
        engine = Engine(create_executor(config, lambda phase, fraction: None), speculative=speculative)
        answers.append(engine.run(request))
        engine.executor.shutdown()
    assert engine.scheduler.stats().accepted_draft_tokens > 0
    assert answers[0] == answers[1]
