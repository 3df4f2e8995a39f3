"""Encoders give transformers' numbers however their inputs share a step; decoders give them however they are cut."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3Model,
)

from inferd.checkpoint import open_checkpoint
from inferd.config import DeviceConfig, EngineConfig, ModelConfig
from inferd.errors import StartupError
from inferd.executor.base import Executor
from inferd.executor.factory import create_executor
from inferd.models.registry import check_checkpoint
from inferd.request import PoolingParams, SamplingParams
from inferd.step import NewSequence, PlanItem, StepPlan

SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 36,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
CHANGES: dict[str, dict[str, Any]] = {
    "gelu": {},
    "gelu-tanh": {"hidden_act": "gelu_new", "layer_norm_eps": 1e-5},
    "relu-one-type": {"hidden_act": "relu", "type_vocab_size": 1},
}
LENGTHS = (1, 7, 64, 2, 7, 33)


def make(path: Path, model_class: type, **changes: Any) -> Any:
    torch.manual_seed(11)
    model = model_class(BertConfig(**(SIZES | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.dim() == 1 else 0.0, 0.2)
    model.save_pretrained(path)
    return model


def executor_of(path: Path, **model: Any) -> Executor:
    config = EngineConfig(
        model=ModelConfig(source=str(path), path=str(path), **model),
        device=DeviceConfig(device="cpu", kernel_backend="reference", threads=torch.get_num_threads()),
    )
    return create_executor(config, lambda phase, fraction: None)


def inputs(seed: int = 3) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(90) for _ in range(length)] for length in LENGTHS]


def run(executor: Executor, prompts: Sequence[list[int]], params: Sequence[PoolingParams], step: int = 1) -> np.ndarray:
    """Vectors [N, D] of one step that has all of them."""
    first = 100 * step
    new = [NewSequence(first + i, [], SamplingParams(), None, None, [], 0, 0, (), one) for i, one in enumerate(params)]
    items = [PlanItem(first + i, 0, prompt, [], ()) for i, prompt in enumerate(prompts)]
    result = executor.execute(StepPlan(step, items, new))
    executor.execute(StepPlan(step + 1, [], dropped=[item.seq_id for item in items]))
    assert [answer.seq_id for answer in result.results] == [item.seq_id for item in items]
    return np.stack([np.frombuffer(answer.vector, "<f4") for answer in result.results])


def of_kind(kind: Any, prompts: Sequence[list[int]]) -> list[PoolingParams]:
    return [PoolingParams(kind=kind, num_tokens=len(prompt)) for prompt in prompts]


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mean": lambda states: states.mean(0),
    "cls": lambda states: states[0],
    "last": lambda states: states[-1],
}


@pytest.mark.parametrize("name", CHANGES)
def test_vectors_equal_transformers(name: str, tmp_path: Path) -> None:
    model = make(tmp_path, BertModel, **CHANGES[name])
    executor, prompts = executor_of(tmp_path), inputs()
    assert executor.info.whole_prompts
    for step, (kind, pooled) in enumerate(POOLED.items()):
        with torch.no_grad():
            expected = torch.stack([pooled(model(torch.tensor([p])).last_hidden_state[0]) for p in prompts])
        ours = run(executor, prompts, of_kind(kind, prompts), 1 + 2 * step)
        np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def test_a_batch_mate_changes_nothing(tmp_path: Path) -> None:
    make(tmp_path, BertModel)
    executor, prompts = executor_of(tmp_path), inputs()
    together = run(executor, prompts, of_kind("mean", prompts))
    alone = [run(executor, [p], of_kind("mean", [p]), 3 + 2 * i)[0] for i, p in enumerate(prompts)]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-6)


@pytest.mark.parametrize("labels", [1, 3])
def test_class_logits_of_pairs_equal_transformers(labels: int, tmp_path: Path) -> None:
    model = make(tmp_path, BertForSequenceClassification, num_labels=labels)
    executor, prompts = executor_of(tmp_path), inputs()[1:]
    starts = [len(prompt) // 2 for prompt in prompts]
    params = [
        PoolingParams(kind="classify", num_tokens=len(prompt), second_start=start)
        for prompt, start in zip(prompts, starts, strict=True)
    ]
    expected = []
    for prompt, start in zip(prompts, starts, strict=True):
        types = torch.tensor([[0] * start + [1] * (len(prompt) - start)])
        with torch.no_grad():
            expected.append(model(torch.tensor([prompt]), token_type_ids=types).logits[0].numpy())
    ours = run(executor, prompts, params)
    np.testing.assert_allclose(ours, np.stack(expected), atol=1e-5)
    without_types = run(executor, prompts, of_kind("classify", prompts), 3)
    assert np.abs(without_types - ours).max() > 1e-3  # the second text's type does matter


def test_states_that_are_not_finite_give_no_vector(tmp_path: Path) -> None:
    model = make(tmp_path, BertModel)
    with torch.no_grad():
        model.encoder.layer[2].output.dense.weight.mul_(3e38)
    model.save_pretrained(tmp_path)
    executor = executor_of(tmp_path)
    new = NewSequence(1, [], SamplingParams(), None, None, [], 0, 0, (), PoolingParams(kind="mean", num_tokens=2))
    result = executor.execute(StepPlan(1, [PlanItem(1, 0, [3, 4], [], ())], [new]))
    assert result.results[0].vector == b""


@pytest.mark.parametrize("kind", ["mean", "last"])
@pytest.mark.parametrize("chunk", [40, 16, 1])
def test_a_decoder_pools_its_last_states(tiny_llama: Path, kind: str, chunk: int) -> None:
    prompt = [index * 7 % 120 for index in range(40)]
    model = LlamaForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        states = model.model(torch.tensor([prompt])).last_hidden_state[0]
    executor = executor_of(tiny_llama)
    params = PoolingParams(kind=kind, num_tokens=40)  # type: ignore[arg-type]  # parametrized
    new = [NewSequence(1, [5, 2, 9], SamplingParams(), None, None, [], 0, 0, (), params)]
    for step, start in enumerate(range(0, 40, chunk), 1):
        item = PlanItem(1, start, prompt[start : start + chunk], [], ())
        (answer,) = executor.execute(StepPlan(step, [item], new if step == 1 else [])).results
        assert bool(answer.vector) == (start + chunk >= 40)
    np.testing.assert_allclose(np.frombuffer(answer.vector, "<f4"), POOLED[kind](states).numpy(), atol=1e-5)


def test_an_encoder_takes_a_shorter_context_but_no_longer_one(tmp_path: Path) -> None:
    make(tmp_path, BertModel)
    assert executor_of(tmp_path, max_model_len=20).info.max_context_tokens == 20
    with pytest.raises(StartupError, match="max_model_len is 65"):
        executor_of(tmp_path, max_model_len=65)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh'"),
        ({"is_decoder": True}, "is_decoder"),
        ({"num_attention_heads": 5}, "no multiple"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_what_only_looks_like_bert_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    make(tmp_path, BertModel)
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.config.update(changes)
    with pytest.raises(StartupError, match=message):
        check_checkpoint(checkpoint)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    make(tmp_path, BertForSequenceClassification)
    checkpoint = open_checkpoint(tmp_path)
    del checkpoint.tensors["classifier.bias"]
    with pytest.raises(StartupError, match=r"classifier\.bias is missing"):
        check_checkpoint(checkpoint)


def test_a_decoder_saved_without_its_head_embeds_and_generates(tmp_path: Path) -> None:
    """As the embedding models of the Qwen3 family are published: tied embeddings, tensors without `model.`."""
    torch.manual_seed(2)
    config = Qwen3Config(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = Qwen3Model(config).eval()
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text()) | {"architectures": ["Qwen3ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert "embed_tokens.weight" in load_file(tmp_path / "model.safetensors")
    prompt = [5, 9, 33]
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).last_hidden_state[0, -1].numpy()
    params = PoolingParams(kind="last", num_tokens=3)
    new = NewSequence(1, [0], SamplingParams(), None, None, [], 0, 0, (), params)
    (answer,) = executor_of(tmp_path).execute(StepPlan(1, [PlanItem(1, 0, prompt, [], ())], [new])).results
    np.testing.assert_allclose(np.frombuffer(answer.vector, "<f4"), expected, atol=1e-5)
