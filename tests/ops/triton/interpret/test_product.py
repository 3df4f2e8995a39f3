"""The engine itself over the Triton ops: a tiny Llama from its checkpoint through scheduler, worker, padded decode
buckets and sampling says what it says over the reference ops."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from inferd_kernels.proof.problems import paged_batch, relative_error
from inferd_kernels.triton.linear import W4Weight
from inferd_kernels.weights import Fp8Weight
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from inferd.checkpoint import open_checkpoint
from inferd.config import (
    CacheConfig,
    CacheDtype,
    DeviceConfig,
    EngineConfig,
    ModelConfig,
    Quantization,
    SchedulerConfig,
)
from inferd.executor.build import build_model, load_model
from inferd.executor.factory import create_executor
from inferd.executor.local import DeviceExecutor
from inferd.models.model import Model
from inferd.models.registry import check_checkpoint
from inferd.request import Request, SamplingParams
from inferd.step import PENDING
from inferd.testing.requests import Driver, make_request

SCHEDULER = SchedulerConfig(max_num_seqs=5, max_num_batched_tokens=24)  # prompts come in chunks
VOCAB = 120


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of whole pairs of quantized groups."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("wide-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Norms of q and k."""
    torch.manual_seed(4)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=24,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("qwen")
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def drive(path: Path, backend: str, cache: CacheDtype = "auto") -> Driver:
    config = EngineConfig(
        model=ModelConfig(source="tiny", path=str(path)),
        cache=CacheConfig(num_blocks=24, block_size=16, dtype=cache),
        scheduler=SCHEDULER,
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=1),
    )
    executor = create_executor(config, lambda phase, fraction: None)
    assert isinstance(executor, DeviceExecutor) == (backend == "triton")
    assert set(executor.info.backends.values()) == ({"triton", "reference"} if backend == "triton" else {"reference"})
    return Driver(config=SCHEDULER, executor=executor)


def decoder(path: Path, backend: str, quantization: Quantization | None) -> Model:
    config = EngineConfig(
        model=ModelConfig(source="tiny", path=str(path), dtype="bfloat16", quantization=quantization),
        device=DeviceConfig(device="cpu", kernel_backend=backend, threads=1),
    )
    checkpoint = open_checkpoint(path)
    spec = check_checkpoint(checkpoint)
    model = load_model(config, checkpoint, spec, torch.device("cpu"), lambda fraction: None)
    return build_model(model, 8, 16)


def logits(model: Model, tokens: list[int]) -> torch.Tensor:
    """Of a prompt, then of one more token [T + 1, V]."""
    rows = []
    for ids, length in ((tokens[:-1], len(tokens) - 1), (tokens[-1:], len(tokens))):
        batch = paged_batch([len(ids)], [length], torch.tensor([[3, 1]], dtype=torch.int32))
        rows.append(model.logits(model.forward(torch.tensor(ids), batch)))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("quantization", "kind", "tolerance"),
    [("q4", W4Weight, 0.02), ("fp8", Fp8Weight, 0.06)],  # fp8 rounds the activations too
)
def test_quantized_weights_through_the_model(
    quantization: Quantization, kind: type, tolerance: float, wide_llama: Path
) -> None:
    """Kept in the kernels' form, and computed as the reference does with the same rounded weights."""
    model = decoder(wide_llama, "triton", quantization)
    (layer,) = model.weights.layers
    parts = [
        part
        for matrix in (layer.mixer.qkv, layer.mixer.o, layer.feed_forward.up, layer.feed_forward.down)
        for part in matrix.parts
    ]
    assert {type(part) for part in parts} == {kind}
    assert model.weights.num_bytes < decoder(wide_llama, "triton", None).weights.num_bytes
    tokens = prompts(3)[2]
    reference = logits(decoder(wide_llama, "reference", quantization), tokens)
    assert relative_error(logits(model, tokens), reference) < tolerance


def prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(0, VOCAB, (5 + 7 * index,), generator=generator).tolist() for index in range(count)]


def outputs(run: Driver, requests: list[Request]) -> list[list[int]]:
    run.add(*requests)
    run.run()
    return [run.choice(request.key).token_ids for request in requests]


def test_a_few_tokens_of_a_tiny_llama(llama: Path) -> None:
    asked = [make_request(key, prompt, max_tokens=3) for key, prompt in enumerate(prompts(2))]
    run = drive(llama, "triton")
    assert outputs(run, asked) == outputs(drive(llama, "reference"), asked)
    assert any(item.token_ids == [PENDING] for plan in run.plans for item in plan.items)


def test_an_8_bit_cache_through_the_engine(llama: Path) -> None:
    """Both backends quantize each token and head alike, so they agree as they do in float32."""
    asked = [make_request(key, prompt, max_tokens=3) for key, prompt in enumerate(prompts(2))]
    said = outputs(drive(llama, "triton", "fp8"), asked)
    assert said == outputs(drive(llama, "reference", "fp8"), asked)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["fp8", "int8"])
def test_five_prompts_of_eight_tokens_over_an_8_bit_cache(llama: Path, cache: CacheDtype) -> None:
    asked = [make_request(key, prompt, max_tokens=8) for key, prompt in enumerate(prompts(5))]
    said = outputs(drive(llama, "triton", cache), asked)
    assert said == outputs(drive(llama, "reference", cache), asked)
    assert [len(tokens) for tokens in said] == [8] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.9, top_k=30, top_p=0.95, min_p=0.01, seed=7),
        SamplingParams(
            temperature=0.8, repetition_penalty=1.3, presence_penalty=0.5, allowed_token_ids=tuple(range(9, 90))
        ),
    ],
    ids=["greedy", "sampled", "penalized"],
)
@pytest.mark.parametrize("model", ["llama", "qwen"])
def test_five_prompts_of_eight_tokens(model: str, sampling: SamplingParams, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(model)
    asked = [make_request(key, prompt, max_tokens=8, sampling=sampling) for key, prompt in enumerate(prompts(5))]
    said = outputs(drive(path, "triton"), asked)
    assert said == outputs(drive(path, "reference"), asked)
    assert [len(tokens) for tokens in said] == [8] * 5
