"""Models with windows through scheduler and executor: their tokens are transformers' while the blocks that a window has
passed hold NaN or other sequences' keys and values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig, MistralConfig

from inferd.cache_groups import CacheGroups
from inferd.checkpoint import open_checkpoint
from inferd.config import (
    CacheConfig,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
)
from inferd.executor.base import Executor
from inferd.executor.build import build_device_worker, executor_info, kv_room, load_model
from inferd.executor.factory import create_executor
from inferd.executor.kv_plan import plan_kv
from inferd.executor.local import DeviceExecutor
from inferd.models.registry import check_checkpoint
from inferd.request import LogprobParams, Request, SamplingParams
from inferd.step import StepPlan, StepResult
from inferd.testing.requests import Driver, make_request
from inferd.testing.thread_ranks import ThreadExecutor

KernelBackend: TypeAlias = Literal["reference", "native"]
CHUNK, PAGE, OUTPUT = 16, 4, 28
SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
}
SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, tuple[type, dict[str, Any], tuple[int, ...]]] = {
    "gemma2": (Gemma2Config, {"sliding_window": 9}, (0, 9)),
    "gemma3": (
        Gemma3TextConfig,
        {"sliding_window": 10, "layer_types": [SLIDING] * 5 + [FULL]},
        (0, 10, 10, 10, 10, 10),
    ),
    "mistral": (MistralConfig, {"sliding_window": 20}, (20,)),
}
GENERATOR = torch.Generator().manual_seed(5)
SHARED = torch.randint(3, 160, (61,), generator=GENERATOR).tolist()
PROMPTS = [SHARED + torch.randint(3, 160, (count,), generator=GENERATOR).tolist() for count in (1, 9, 17, 30)]
PROMPTS += [torch.randint(3, 160, (count,), generator=GENERATOR).tolist() for count in (5, 6, 7, 3)]  # they grow most


@dataclass(frozen=True)
class Case:
    """A checkpoint, the windows of its groups, and what transformers generates after each of PROMPTS."""

    path: Path
    windows: tuple[int, ...]
    tokens: list[list[int]]
    logprobs: list[list[float]]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind, changes, windows = FAMILIES[request.param]
    torch.manual_seed(1)
    config = kind(**(SIZES | changes))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    tokens, logprobs = [], []
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.15)
        for prompt in PROMPTS:
            known, values = list(prompt), []
            for _ in range(OUTPUT):
                best = model(torch.tensor([known])).logits[0, -1].log_softmax(-1).max(0)
                known.append(int(best.indices))
                values.append(float(best.values))
            tokens.append(known[len(prompt) :])
            logprobs.append(values)
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return Case(path, windows, tokens, logprobs)


class Poisoner:
    """An executor that fills every block that nobody holds with NaN before each step."""

    def __init__(self, executor: Any) -> None:
        self.info = executor.info
        self.free: Callable[[], list[int]] = list
        self.poisoned: Counter[int] = Counter()
        self._executor = executor
        self._results: list[StepResult] = []

    @torch.inference_mode()
    def submit(self, plan: StepPlan) -> None:
        blocks = self.free()
        self.poisoned.update(blocks)
        for cache in self._executor._worker._decoder.pools:
            for tensor in cache.tensors:
                tensor[blocks] = float("nan")
        self._results.append(self._executor.execute(plan))

    def collect(self) -> StepResult:
        return self._results.pop(0)


def groups_of(case: Case) -> CacheGroups:
    return CacheGroups(case.windows, PAGE, CHUNK)


def settings(
    case: Case, num_blocks: int, backend: KernelBackend, prefix_caching: bool = True, guesses: bool = False
) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source="tiny", path=str(case.path)),
        cache=CacheConfig(num_blocks=num_blocks, block_size=PAGE, prefix_caching=prefix_caching, dtype="float32"),
        scheduler=SchedulerConfig(
            max_num_batched_tokens=CHUNK,
            speculative=SpeculativeConfig(prompt_lookup_min=1) if guesses else None,
        ),
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=1),
    )


def engine(case: Case, num_blocks: int, backend: KernelBackend, **options: bool) -> Driver:
    config = settings(case, num_blocks, backend, **options)
    return poisoned(config, create_executor(config, lambda phase, fraction: None))


def device_engine(case: Case, num_blocks: int) -> Driver:
    """Whose worker looks ahead, and copies decode steps into the buffers of graphs."""
    config = settings(case, num_blocks, "reference")
    checkpoint, cpu = open_checkpoint(case.path), torch.device("cpu")
    spec = check_checkpoint(checkpoint)
    with torch.inference_mode():
        model = load_model(config, checkpoint, spec, cpu, lambda fraction: None)
        plan = plan_kv(spec, config, [kv_room(model, config)])
        worker = build_device_worker(model, plan, config.scheduler)
    return poisoned(config, DeviceExecutor(worker, executor_info(model, plan, looks_ahead=True)))


def poisoned(config: EngineConfig, within: Executor) -> Driver:
    executor = Poisoner(within)
    driver = Driver(config=config.scheduler, cache=config.cache, executor=executor)  # type: ignore[arg-type]
    pool = driver.scheduler._kv.pool
    executor.free = lambda: list(pool._free)
    return driver


def requests(first_key: int = 0, num_choices: int = 1) -> list[Request]:
    return [
        make_request(
            first_key + index,
            prompt,
            max_tokens=OUTPUT,
            num_choices=num_choices,
            sampling=SamplingParams(temperature=0.0),
            logprobs=LogprobParams(),
        )
        for index, prompt in enumerate(PROMPTS)
    ]


def judge(driver: Driver, case: Case, first_key: int = 0, num_choices: int = 1) -> None:
    for index, (tokens, logprobs) in enumerate(zip(case.tokens, case.logprobs, strict=True)):
        for choice in range(num_choices):
            got = driver.choice(first_key + index, choice)
            assert (got.token_ids, got.error) == (tokens, None)
            assert [each.logprob for each in got.logprobs] == pytest.approx(logprobs, abs=1e-4)


@pytest.mark.parametrize("backend", ["reference", "native", "device"])
def test_tokens_under_preemption_and_as_prefix_hits(case: Case, backend: Any) -> None:
    longest = max(len(prompt) for prompt in PROMPTS) + OUTPUT
    num_blocks = groups_of(case).blocks_for(longest) + 3 * len(case.windows)
    driver = device_engine(case, num_blocks) if backend == "device" else engine(case, num_blocks, backend)
    assert driver.executor.info.windows == case.windows
    for first_key in (0, 10):  # the second time, prompts are found in the cache as far as it still has them
        driver.add(*requests(first_key))
        driver.run()
        judge(driver, case, first_key)
    stats = driver.scheduler.stats()
    assert stats.prefix_hits > 0
    assert stats.preemptions > 0


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_freed_blocks_may_hold_anything(case: Case, backend: KernelBackend) -> None:
    """Without a prefix cache a block that a window has passed is free at once, and poisoned before the next step."""
    driver = engine(case, 12 * groups_of(case).blocks_for(111), backend, prefix_caching=False)
    driver.add(*requests(num_choices=2))
    driver.run()
    judge(driver, case, num_choices=2)
    assert sum(len(plan.copies) for plan in driver.plans) > 0
    executor: Any = driver.executor
    written = {block for plan in driver.plans for new in plan.new for block in new.block_ids}
    written |= {block for plan in driver.plans for item in plan.items for block in item.new_block_ids}
    assert written & set(executor.poisoned)


def test_prefix_hits_in_a_large_pool(case: Case) -> None:
    """The cache serves a repeated prompt to its last row but those that hold its last token."""
    driver = engine(case, 1000, "native")
    for first_key in (0, 10):
        driver.add(*requests(first_key))
        driver.run()
        judge(driver, case, first_key)
    found = [driver.choice(10 + index).prompt for index in range(len(PROMPTS))]
    expected = [(len(prompt) - 1) // PAGE * PAGE for prompt in PROMPTS]
    assert [prompt.num_cached_tokens for prompt in found if prompt is not None] == expected


def test_guesses_change_no_token(case: Case) -> None:
    driver = engine(case, 400, "native", guesses=True)
    repeated = [make_request(9, SHARED[:7] * 6, max_tokens=40, sampling=SamplingParams(temperature=0.0))]
    plain = engine(case, 400, "native")
    for each in (driver, plain):
        each.add(*repeated)
        each.run()
    assert driver.choice(9).token_ids == plain.choice(9).token_ids
    driver.add(*requests())
    driver.run()
    judge(driver, case)


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2)])
def test_ranks_group_their_layers_alike(case: Case, tensor: int, pipeline: int) -> None:
    """Of six layers a stage may have five with a window and none without, or groups of unequal size."""
    parallel = ParallelConfig(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    config = msgspec.structs.replace(settings(case, 300, "reference"), parallel=parallel)
    executor = ThreadExecutor(config)
    try:
        driver = Driver(config=config.scheduler, executor=executor)
        assert executor.info.windows == case.windows
        for first_key in (0, 10):
            driver.add(*requests(first_key)[:2])
            driver.run()
            for index in range(2):
                assert driver.choice(first_key + index).token_ids == case.tokens[index]
    finally:
        executor.shutdown()
