"""Qwen3: RMS norm over each head of q and k, head_dim of its own."""

from __future__ import annotations

from inferd.models.hf_config import Config, llama_like
from inferd.models.qwen2 import qwen_windows
from inferd.models.spec import DecoderSpec
from inferd.models.weights import llama_rules

ARCHITECTURE = "Qwen3ForCausalLM"
weight_rules = llama_rules


def spec_from_hf(config: Config) -> DecoderSpec:
    bias = bool(config.get("attention_bias", False))
    # Qwen3 states head_dim 128 as its default, whatever hidden_size / heads is.
    config = {**config, "head_dim": config.get("head_dim") or 128}
    return llama_like(config, ARCHITECTURE, windows=qwen_windows(config), qk_norm=True, qkv_bias=bias, o_bias=bias)
