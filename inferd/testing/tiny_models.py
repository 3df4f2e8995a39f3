"""Tiny random checkpoints of every family, written by transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 203  # odd: no number of ranks divides it
SIZES = MappingProxyType(
    {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
)
MIXED = ("sliding_attention", "full_attention", "sliding_attention")
CONFIGS: Mapping[str, tuple[type[PretrainedConfig], Mapping[str, Any]]] = MappingProxyType(
    {
        "llama": (LlamaConfig, {"intermediate_size": 72, "num_key_value_heads": 2}),
        "llama-odd": (
            LlamaConfig,
            {"intermediate_size": 70, "num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 36},
        ),
        "llama-tied": (LlamaConfig, {"intermediate_size": 64, "num_key_value_heads": 1, "tie_word_embeddings": True}),
        "qwen3": (Qwen3Config, {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 12}),
        "gemma3": (
            Gemma3TextConfig,
            {
                "intermediate_size": 64,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "sliding_window": 20,
                "layer_types": list(MIXED),
            },
        ),
        "mixtral": (MixtralConfig, {"intermediate_size": 40, "num_key_value_heads": 2, "num_local_experts": 5}),
        "qwen3-moe": (
            Qwen3MoeConfig,
            {
                "intermediate_size": 64,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "num_experts": 6,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "norm_topk_prob": True,
                "mlp_only_layers": [1],
            },
        ),
        "gpt-oss": (
            GptOssConfig,
            {
                "intermediate_size": 40,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "sliding_window": 20,
                "layer_types": list(MIXED),
                "num_local_experts": 5,
                "num_experts_per_tok": 2,
            },
        ),
        "deepseek-v3": (
            DeepseekV3Config,
            {
                "intermediate_size": 64,
                "q_lora_rank": 20,
                "kv_lora_rank": 16,
                "qk_nope_head_dim": 10,
                "qk_rope_head_dim": 8,
                "v_head_dim": 12,
                "num_key_value_heads": 4,
                "n_routed_experts": 8,
                "num_experts_per_tok": 3,
                "moe_intermediate_size": 24,
                "n_group": 4,
                "topk_group": 2,
                "first_k_dense_replace": 1,
            },
        ),
        "gpt2": (GPT2Config, {}),
        "opt": (OPTConfig, {"ffn_dim": 72, "word_embed_proj_dim": 32}),
    }
)


def write_tiny_model(name: str, path: Path, seed: int = 0, **changes: Any) -> Path:
    """One of CONFIGS into the folder `path`; the spread of the weights makes tokens differ."""
    config_class, own = CONFIGS[name]
    model = AutoModelForCausalLM.from_config(config_class(**{**SIZES, **own, **changes}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.25, generator=generator)
    model.save_pretrained(path)
    return path
