"""`--kv-cache-dtype`: what a backend keeps, it computes with, within the rounding of its type; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from inferd_kernels.ops import Ops
from transformers import LlamaForCausalLM

from inferd.blocks.caches import PagedNeed
from inferd.config import CacheConfig, CacheDtype, DeviceConfig, EngineConfig, ModelConfig
from inferd.errors import StartupError
from inferd.executor.build import allocate_caches
from inferd.executor.factory import create_executor
from inferd.models.model import Model
from inferd.request import LogprobParams, SamplingParams
from inferd.step import BlockCopy, NewSequence, PlanItem, StepPlan

GREEDY = SamplingParams(temperature=0.0)
PROMPT = [5, 17, 99, 3, 42, 42, 8, 77, 61, 12, 1, 0, 119, 30, 31, 32, 33, 64, 65, 66]
# Of log probabilities over 20 tokens of context: a key or value is kept to 1/16 in fp8 e4m3, 1/254 of its head's
# largest in int8, 1/2048 in float16.
TOLERANCE = {"float16": 4e-3, "int8": 5e-2, "fp8": 0.3}


def executor(path: Path, dtype: CacheDtype, backend: str = "reference", num_blocks: int | None = 64) -> Any:
    config = EngineConfig(
        model=ModelConfig(source="m", path=str(path)),
        cache=CacheConfig(num_blocks=num_blocks, dtype=dtype, memory_bytes=None if num_blocks else 1 << 20),
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=torch.get_num_threads()),
    )
    return create_executor(config, lambda phase, fraction: None)


def logprobs(
    path: Path, run_type: type, driver_type: Callable[[Any], Any], dtype: CacheDtype, backend: str = "reference"
) -> torch.Tensor:
    """Of the prompt's tokens [T - 1], the prompt in chunks, so that later ones read what earlier ones wrote."""
    run = run_type(PROMPT, max_tokens=1, prompt_logprobs=LogprobParams())
    driver_type(executor(path, dtype, backend)).run([run], chunk=3)
    return torch.tensor([result.logprob for result in run.prompt_results])


@pytest.fixture(scope="module")
def driver_type(make_driver: Callable[[Path], Any], tiny_llama: Path) -> Callable[[Any], Any]:
    return type(make_driver(tiny_llama))


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_log_probabilities_are_those_of_float32_within_the_rounding(
    dtype: CacheDtype, tiny_llama: Path, run_type: type, driver_type: Any
) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        every = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    expected = every[:-1].gather(1, torch.tensor(PROMPT[1:]).unsqueeze(1)).flatten()
    exact = logprobs(tiny_llama, run_type, driver_type, "float32")
    assert torch.allclose(exact, expected, atol=1e-4)
    rounded = logprobs(tiny_llama, run_type, driver_type, dtype)
    assert 0 < float((rounded - exact).abs().max()) < TOLERANCE[dtype]


def test_the_native_kernels_round_as_the_reference_does(tiny_llama: Path, run_type: type, driver_type: Any) -> None:
    expected = logprobs(tiny_llama, run_type, driver_type, "int8")
    assert torch.allclose(logprobs(tiny_llama, run_type, driver_type, "int8", "native"), expected, atol=2e-4)


@pytest.mark.parametrize(("dtype", "backend"), [("int8", "reference"), ("fp8", "reference"), ("int8", "native")])
def test_a_sequence_is_the_same_alone_and_among_others(
    dtype: CacheDtype, backend: str, tiny_llama: Path, run_type: type, driver_type: Any
) -> None:
    driver = driver_type(executor(tiny_llama, dtype, backend))
    runs = [run_type(PROMPT[: 3 + 4 * index], max_tokens=8) for index in range(4)]
    together = driver.run(runs, chunk=5)
    for index, tokens in enumerate(together):
        assert driver.run([run_type(PROMPT[: 3 + 4 * index], max_tokens=8)]) == [tokens]


@pytest.mark.parametrize(("dtype", "backend"), [("int8", "reference"), ("fp8", "reference"), ("int8", "native")])
def test_a_copied_block_takes_its_scales_along(dtype: CacheDtype, backend: str, tiny_llama: Path) -> None:
    worker = executor(tiny_llama, dtype, backend)
    new = [NewSequence(key, shared, GREEDY, LogprobParams(), None, [], 0, 0, ()) for key, shared in ((0, []), (1, [3]))]
    first = worker.execute(StepPlan(1, [PlanItem(0, 0, PROMPT[:10], [3], (0,))], new))
    follow = [PlanItem(0, 10, [7], [], (0,)), PlanItem(1, 10, [7], [], (0,))]
    second = worker.execute(StepPlan(2, follow, copies=[BlockCopy(1, 0, 3, 9)]))
    assert len(first.results[0].samples) == 1
    mine, copied = (result.samples[0] for result in second.results)
    assert mine == copied


def test_an_8_bit_cache_holds_more_blocks_in_the_same_memory(tiny_llama: Path) -> None:
    """Head dim 8: 8 values and a float32 scale, where float32 takes 32 bytes and float16 16."""
    blocks = {dtype: executor(tiny_llama, dtype, num_blocks=None).info.num_blocks for dtype in ("float32", "fp8")}
    assert blocks["fp8"] == blocks["float32"] * 32 // 12 > 0


def test_a_cache_dtype_that_the_backend_does_not_keep_is_refused_at_startup(tiny_llama: Path) -> None:
    with pytest.raises(StartupError, match=r"^kv-cache-dtype fp8: kernel backend native-\w+ keeps float32, bfloat16"):
        executor(tiny_llama, "fp8", "native")


def test_the_configuration_names_every_type(load_decoder: Callable[[Path], Model], tiny_llama: Path) -> None:
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'fp8_e5m2'"):
        msgspec.convert({"dtype": "fp8_e5m2"}, CacheConfig)
    (cache,) = allocate_caches([PagedNeed(1, 8)], (2, 16), torch.int8, torch.device("cpu"), Ops())
    assert [tensor.dtype for tensor in cache.tensors] == [torch.int8, torch.int8, torch.float32, torch.float32]
