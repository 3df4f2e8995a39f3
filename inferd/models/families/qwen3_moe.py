"""Qwen3 with experts in place of the feed-forward, in all layers or in some."""

from __future__ import annotations

from inferd.blocks.experts import RouterSpec
from inferd.blocks.layer import FeedForwardBlockSpec
from inferd.models.families.qwen2 import qwen_windows
from inferd.models.families.qwen3 import normed, with_head_dim
from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import experts, gated_feed_forward, llama_like, positive_int
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    config = with_head_dim(config)
    num_experts = positive_int(config, "num_local_experts", positive_int(config, "num_experts", 128))
    # A GGUF header does not state it; every published file is normalized.
    is_normalized = is_gguf(config) or bool(config.get("norm_topk_prob", False))
    router = RouterSpec(positive_int(config, "num_experts_per_tok", 8), is_normalized=is_normalized)
    block = experts(config, router, num_experts, positive_int(config, "moe_intermediate_size"))
    plain, period = set(config.get("mlp_only_layers") or ()), positive_int(config, "decoder_sparse_step", 1)

    def feed_forward(layer: int) -> FeedForwardBlockSpec:
        return gated_feed_forward(config) if layer in plain or (layer + 1) % period else block

    return llama_like(
        config,
        "Qwen3MoeForCausalLM",
        windows=qwen_windows(config),
        mixer=lambda spec: normed(config, spec),
        feed_forward=feed_forward,
    )


FAMILY = Family(
    architectures=("Qwen3MoeForCausalLM",),
    headless=("Qwen3MoeModel",),
    model_types=("qwen3_moe",),
    gguf=("qwen3moe",),
    describe=describe,
)
