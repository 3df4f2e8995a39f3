"""The engine on a GPU: captured steps equal the same steps op by op, launching waits for nothing, and tokens are the
CPU's. `make test-gpu` runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from inferd_kernels.proof.problems import paged_batch
from transformers import LlamaConfig, LlamaForCausalLM

from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, SchedulerConfig
from inferd.executor.build import build_model, load_model
from inferd.executor.decode_graphs import DecodeGraphs
from inferd.executor.factory import create_executor
from inferd.executor.local import DeviceExecutor
from inferd.models.registry import check_checkpoint
from inferd.request import LogprobParams, SamplingParams
from inferd.testing.requests import Driver, make_request

pytestmark = pytest.mark.gpu

SCHEDULER = SchedulerConfig(max_num_seqs=6, max_num_batched_tokens=64)
BLOCKS, PAGE = 64, 16


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=256,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def config(path: Path, device: Any) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source="m", path=str(path), dtype="float32"),
        cache=CacheConfig(num_blocks=BLOCKS, block_size=PAGE),
        scheduler=SCHEDULER,
        device=DeviceConfig(device=device),
    )


def drive(path: Path, device: str) -> Driver:
    executor = create_executor(config(path, device), lambda phase, fraction: None)
    assert isinstance(executor, DeviceExecutor) == (device == "cuda")
    return Driver(config=SCHEDULER, executor=executor)


@pytest.mark.parametrize(
    ("sampling", "logprobs"),
    [
        (SamplingParams(temperature=0.0), None),
        (SamplingParams(temperature=0.0), LogprobParams(top_n=2)),
        (SamplingParams(temperature=0.9, top_k=30, top_p=0.95, seed=4), None),
        (SamplingParams(temperature=0.0, repetition_penalty=1.3, logit_bias=((5, 1.0),)), None),
    ],
)
def test_tokens_are_the_cpus(llama: Path, sampling: SamplingParams, logprobs: LogprobParams | None) -> None:
    said = []
    for device in ("cpu", "cuda"):
        run = drive(llama, device)
        run.add(*(
            make_request(key, range(key, 9 * key + 20), max_tokens=20, sampling=sampling, logprobs=logprobs)
            for key in range(5)
        ))  # fmt: skip
        run.run()
        said.append([run.choice(key).token_ids for key in range(5)])
    assert said[0] == said[1]


def test_launching_a_step_waits_for_nothing(llama: Path) -> None:
    run = drive(llama, "cuda")
    run.add(*(make_request(key, range(20), max_tokens=8) for key in range(4)))
    run.step()  # compiles what was not
    launch, mode = run.executor.submit, torch.cuda.get_sync_debug_mode()

    def guarded(plan: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            launch(plan)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    run.executor.submit = guarded  # type: ignore[method-assign]  # watched
    run.run()
    assert all(len(run.choice(key).token_ids) == 8 for key in range(4))


def test_replay_equals_the_step_op_by_op(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    spec = check_checkpoint(checkpoint)
    device = torch.device("cuda")
    model = load_model(config(llama, "cuda"), checkpoint, spec, device, lambda fraction: None)
    results = []
    for captured in (False, True):
        decoder = build_model(model, BLOCKS, PAGE)
        for cache in decoder.caches:
            cache.k.zero_()
            cache.v.zero_()
        graphs = DecodeGraphs(decoder, 6, 256, PAGE, device)
        if captured:
            graphs.capture()
        streams = []
        for step in range(40):
            lens = [step + 1, step + 17, step + 100][: 1 + step % 3]
            tables = torch.arange(3 * 10, dtype=torch.int32).view(3, 10)[: len(lens)]
            batch = paged_batch([1] * len(lens), lens, tables)
            moved = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
            moved = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in moved.items()}
            with torch.inference_mode():
                streams.append(graphs.forward(torch.arange(len(lens), device=device), type(batch)(**moved)).clone())
        results.append(streams)
    for eager, replayed in zip(*results, strict=True):
        assert torch.equal(eager, replayed)
