"""Llama 2 and 3, SmolLM2, TinyLlama and every checkpoint that calls itself LlamaForCausalLM. llama.cpp writes Mistral
and Mixtral under the same architecture name."""

from __future__ import annotations

from dataclasses import replace

from inferd.blocks.attention import AttentionSpec
from inferd.models.families.mistral import describe as describe_mistral
from inferd.models.families.mixtral import describe as describe_mixtral
from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import biased, llama_like
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    if not is_gguf(config):
        return llama_like(config, "LlamaForCausalLM", mixer=biased(config))
    if config.get("num_local_experts"):
        return describe_mixtral(config)
    if config.get("sliding_window"):
        return describe_mistral(config)
    return llama_like(config, "LlamaForCausalLM", mixer=lambda spec: _interleaved(biased(config)(spec)))


def _interleaved(spec: AttentionSpec) -> AttentionSpec:
    """llama.cpp stores the rows of queries and keys with rotary pairs side by side."""
    assert spec.rope is not None
    return replace(spec, rope=replace(spec.rope, interleaved=True))


FAMILY = Family(
    architectures=("LlamaForCausalLM",),
    headless=("LlamaModel",),
    model_types=("llama",),
    gguf=("llama",),
    describe=describe,
    ignored=r"(.*\.)?rotary_emb\.inv_freq|model\.layers\.\d+\.self_attn\.rotary_emb\..*|rope_freqs\.weight",
)
