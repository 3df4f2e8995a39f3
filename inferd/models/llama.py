"""Llama 2 and 3, SmolLM2, TinyLlama and every checkpoint that calls itself LlamaForCausalLM."""

from __future__ import annotations

from inferd.models.hf_config import Config, llama_like
from inferd.models.spec import DecoderSpec
from inferd.models.weights import llama_rules

ARCHITECTURE = "LlamaForCausalLM"
weight_rules = llama_rules


def spec_from_hf(config: Config) -> DecoderSpec:
    bias = bool(config.get("attention_bias", False))
    return llama_like(config, ARCHITECTURE, qkv_bias=bias, o_bias=bias)
