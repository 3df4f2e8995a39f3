"""Whatever the number of ranks and stages, the answers are those of one worker. Ranks are threads here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inferd.config import EngineConfig, SpeculativeConfig
from inferd.executor.factory import create_executor
from inferd.testing.thread_ranks import ThreadExecutor
from inferd.testing.tiny_models import CONFIGS

SHAPES = [(2, 1), (1, 2), (2, 2), (4, 1), (4, 2)]
QUICK = [
    *(("llama-odd", 2, 1), ("qwen3", 1, 2), ("llama-tied", 2, 2), ("gpt2", 4, 1), ("opt", 2, 2)),
    *(("gemma3", 2, 1), ("qwen3-moe", 2, 2), ("gpt-oss", 2, 1), ("deepseek-v3", 2, 2), ("mixtral", 1, 2)),
]
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def single(tiny_model: Callable[[str], Path], engine_config: Callable[..., EngineConfig], ask: Ask) -> Ask:
    """What one worker answers, and what the scheduler went through; computed once per model and workload."""
    known: dict[tuple[str, int, int], Any] = {}

    def answers(name: str, count: int, tokens: int) -> Any:
        key = name, count, tokens
        if key not in known:
            config = engine_config(tiny_model(name))
            known[key] = ask(create_executor(config, lambda phase, fraction: None), config, count, tokens)
        return known[key]

    return answers


def many(config: EngineConfig, ask: Ask, count: int, tokens: int) -> Any:
    executor = ThreadExecutor(config)
    try:
        return ask(executor, config, count, tokens)
    finally:
        executor.shutdown()


@pytest.mark.parametrize(("name", "tensor", "stages"), QUICK)
def test_a_few_answers_are_those_of_one_worker(
    name: str,
    tensor: int,
    stages: int,
    single: Ask,
    tiny_model: Callable[[str], Path],
    engine_config: Callable[..., EngineConfig],
    ask: Ask,
    same: Callable[[Any, Any], None],
) -> None:
    config = engine_config(tiny_model(name), tensor, stages)
    same(many(config, ask, 10, 6)[0], single(name, 10, 6)[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("tensor", "stages"), SHAPES)
@pytest.mark.parametrize("name", CONFIGS)
def test_answers_are_those_of_one_worker(
    name: str,
    tensor: int,
    stages: int,
    single: Ask,
    tiny_model: Callable[[str], Path],
    engine_config: Callable[..., EngineConfig],
    ask: Ask,
    same: Callable[[Any, Any], None],
) -> None:
    """20 prompts, 32 tokens each, through everything that a scheduler does."""
    expected, drive = single(name, 20, 32)
    stats = drive.scheduler.stats()
    assert stats.preemptions > 0, "the workload preempts nothing"
    assert stats.prefix_hits > 0, "the workload finds no prefix"
    assert sum(len(plan.copies) for plan in drive.plans) > 0, "no choices share a block"
    assert sum(len(plan.masks) for plan in drive.plans) > 100, "few tokens are drawn under a constraint"
    assert len({tuple(each.token_ids) for each in expected.values()}) > 15, "the model says the same to everything"
    answers, drive = many(engine_config(tiny_model(name), tensor, stages), ask, 20, 32)
    same(answers, expected)
    assert drive.scheduler.stats().prefix_hits > 0


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (1, 2)])
def test_guessed_tokens_change_no_answer(
    tensor: int,
    stages: int,
    single: Ask,
    tiny_model: Callable[[str], Path],
    engine_config: Callable[..., EngineConfig],
    ask: Ask,
    same: Callable[[Any, Any], None],
) -> None:
    """Speculation over several ranks against one worker without it."""
    config = engine_config(tiny_model("llama"), tensor, stages)
    scheduler = replace(config.scheduler, max_num_seqs=3, speculative=SpeculativeConfig(prompt_lookup_min=1))
    answers, drive = many(replace(config, scheduler=scheduler), ask, 10, 32)
    same(answers, single("llama", 10, 32)[0])
    stats = drive.scheduler.stats()
    assert 0 < stats.accepted_draft_tokens < stats.draft_tokens, "guesses are taken, and refused"


@pytest.fixture(scope="module")
def demo_answers(demo_gguf: Path, engine_config: Callable[..., EngineConfig], ask: Ask) -> Any:
    """What one worker makes of the demo model."""
    config = engine_config(demo_gguf)
    return ask(create_executor(config, lambda phase, fraction: None), config, 20, 32)[0]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("tensor", "stages"), SHAPES)
def test_the_demo_model_answers_alike(
    tensor: int,
    stages: int,
    demo_gguf: Path,
    demo_answers: Any,
    engine_config: Callable[..., EngineConfig],
    ask: Ask,
    same: Callable[[Any, Any], None],
    rank_environment: None,
) -> None:
    """Quantized, 9 heads, 3 KV heads; ranks are processes."""
    config = engine_config(demo_gguf, tensor, stages, step_timeout_s=120.0)
    executor = create_executor(config, lambda phase, fraction: None)
    try:
        same(ask(executor, config, 20, 32)[0], demo_answers)
    finally:
        executor.shutdown()
