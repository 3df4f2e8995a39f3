"""A model in a GGUF file computes what transformers computes from the folder that it was converted from.

The names of the tensors are those of the `gguf` package's own table, which llama.cpp's converter uses; what else that
converter changes is done here, family by family: it permutes rotary rows, adds 1 to norms, stacks experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from inferd.models.model import Model
from inferd.testing.model_rows import rows_of_positions

LAYERS, VOCAB, CONTEXT = 3, 96, 128
EXPERT = re.compile(r"(.*\.experts\.)(\d+)\.(\w+)")
PROMPT = torch.randint(0, VOCAB, (40,), generator=torch.Generator().manual_seed(3)).tolist()


@dataclass(frozen=True)
class Case:
    """What the converter writes for a model of this configuration, beside the sizes that all architectures state."""

    config: PretrainedConfig
    architecture: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    is_permuted: bool = False
    norm_offset: float = 0.0


def sizes(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        **changes,
    }


WINDOW = {"attention.sliding_window": 9}
CASES = {
    "llama": Case(LlamaConfig(**sizes()), "llama", is_permuted=True),
    "mixtral": Case(
        MixtralConfig(**sizes(num_local_experts=4)),
        "llama",
        {"expert_count": 4, "expert_used_count": 2},
        is_permuted=True,
    ),
    "qwen2": Case(Qwen2Config(**sizes()), "qwen2"),
    "qwen3": Case(Qwen3Config(**sizes(head_dim=12)), "qwen3", {"attention.key_length": 12}),
    "qwen3moe": Case(
        Qwen3MoeConfig(
            **sizes(head_dim=12, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True)
        ),
        "qwen3moe",
        {"attention.key_length": 12, "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16},
    ),
    "gemma2": Case(
        Gemma2Config(**sizes(head_dim=12, sliding_window=9, query_pre_attn_scalar=12)),
        "gemma2",
        {"attention.key_length": 12, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **WINDOW},
        norm_offset=1.0,
    ),
    "gemma3": Case(
        Gemma3TextConfig(**sizes(head_dim=12, sliding_window=9, query_pre_attn_scalar=12, num_hidden_layers=7)),
        "gemma3",
        {"attention.key_length": 12, "rope.freq_base": 1e6, **WINDOW},
        norm_offset=1.0,
    ),
    "gpt-oss": Case(
        GptOssConfig(**sizes(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=9)),
        "gpt-oss",
        {
            "attention.key_length": 8,
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 48,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
            "rope.scaling.yarn_beta_fast": 32.0,
            "rope.scaling.yarn_beta_slow": 1.0,
            **WINDOW,
        },
    ),
    "phi3": Case(Phi3Config(**sizes()), "phi3", {"rope.dimension_count": 8}),
}


def tiny(case: Case) -> torch.nn.Module:
    torch.manual_seed(0)
    case.config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(case.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.15)
    return model


def saved_tensors(model: Any, path: Path) -> dict[str, np.ndarray]:
    """As they are in the folder that the model is saved in."""
    from safetensors.numpy import load_file

    model.save_pretrained(path)
    return load_file(path / "model.safetensors")


def convert(case: Case, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Under llama.cpp's names, with its changes."""
    config = case.config
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == case.architecture)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    stacks: dict[str, dict[int, np.ndarray]] = {}
    found: dict[str, np.ndarray] = {}
    for name, values in tensors.items():
        if match := EXPERT.match(name):
            stacks.setdefault(f"{match[1]}{match[3]}.weight", {})[int(match[2])] = values
            continue
        found[name] = values
    for name in [name for name in found if ".experts.gate_up_proj" in name]:  # gpt-oss: both take turns, [in, out]
        values, ending = found.pop(name), name.partition("gate_up_proj")[2]
        for part, place in (("gate_proj", 0), ("up_proj", 1)):
            half = values[..., place::2]
            matrix = half if ending else half.swapaxes(1, 2)
            found[name.replace(f"gate_up_proj{ending}", f"{part}.{'bias' if ending else 'weight'}")] = matrix
        down = name.replace("gate_up_proj", "down_proj")
        values = found.pop(down)
        renamed = down.replace("down_proj_bias", "down_proj.bias") if ending else f"{down}.weight"
        found[renamed] = values if ending else values.swapaxes(1, 2)
    for name, experts in stacks.items():
        found[name] = np.stack([experts[index] for index in range(len(experts))])
    out = {}
    for name, values in found.items():
        if case.norm_offset and name.endswith("norm.weight"):
            values = values + case.norm_offset
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if case.is_permuted and f"self_attn.{part}" in name:
                values = permuted(values, heads)
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert target is not None, f"the gguf package has no name for {name}"
        out[f"{target}.weight" if name.endswith("sinks") else target] = values
    return out


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs side by side."""
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def write(case: Case, tensors: Mapping[str, np.ndarray], path: Path) -> Path:
    config, writer = case.config, gguf.GGUFWriter(path, case.architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    parameters = config.rope_parameters
    if "rope_theta" in parameters:
        writer.add_rope_freq_base(parameters["rope_theta"])
    add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in case.keys.items():
        add[type(value)](f"{case.architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(VOCAB)])
    writer.add_token_types([1] * VOCAB)
    for name, values in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_those_of_the_model_it_was_converted_from(
    name: str, tmp_path: Path, load_decoder: Callable[[Path], Model]
) -> None:
    case = CASES[name]
    model = tiny(case)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0]
    path = write(case, convert(case, saved_tensors(model, tmp_path / "folder")), tmp_path / "model.gguf")
    decoder = load_decoder(path)
    (ours,) = rows_of_positions(decoder, decoder.logits, [PROMPT], 16)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
