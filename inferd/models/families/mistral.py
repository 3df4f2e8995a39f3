"""Mistral 7B and its kin: Llama with a sliding window where the config states one."""

from __future__ import annotations

from dataclasses import replace

from inferd.blocks.attention import AttentionSpec
from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import layer_windows, llama_like, positive_int
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    # A config without the key means 4096, one with null no window: so transformers reads them. A GGUF file states it.
    stated = config.get("sliding_window", None if is_gguf(config) else 4096)
    window = None if stated is None else positive_int({"sliding_window": stated}, "sliding_window")
    return llama_like(
        config, "MistralForCausalLM", windows=layer_windows(config, window), mixer=lambda spec: mixer(config, spec)
    )


def mixer(config: Config, spec: AttentionSpec) -> AttentionSpec:
    """llama.cpp stores the rows of queries and keys with rotary pairs side by side."""
    assert spec.rope is not None
    return replace(spec, rope=replace(spec.rope, interleaved=is_gguf(config)))


FAMILY = Family(
    architectures=("MistralForCausalLM",),
    headless=("MistralModel",),
    model_types=("mistral",),
    describe=describe,
)
