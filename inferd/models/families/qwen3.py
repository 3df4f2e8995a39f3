"""Qwen3: RMS norm over each head of q and k, head_dim of its own."""

from __future__ import annotations

from dataclasses import replace

from inferd.blocks.attention import AttentionSpec, QkNormSpec
from inferd.models.families.qwen2 import qwen_windows
from inferd.models.family import Config, Family
from inferd.models.hf_config import biased, llama_like, positive_float
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    config = with_head_dim(config)
    return llama_like(config, "Qwen3ForCausalLM", windows=qwen_windows(config), mixer=lambda spec: normed(config, spec))


def with_head_dim(config: Config) -> Config:
    """Qwen3 states head_dim 128 as its default, whatever hidden_size / heads is."""
    return {**config, "head_dim": config.get("head_dim") or 128}


def normed(config: Config, spec: AttentionSpec) -> AttentionSpec:
    """Attention with a norm over each head of queries and keys."""
    return replace(biased(config)(spec), qk_norm=QkNormSpec(positive_float(config, "rms_norm_eps", 1e-6)))


FAMILY = Family(
    architectures=("Qwen3ForCausalLM",),
    headless=("Qwen3Model",),
    model_types=("qwen3",),
    gguf=("qwen3",),
    describe=describe,
)
