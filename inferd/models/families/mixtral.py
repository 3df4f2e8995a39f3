"""Mixtral: Mistral with experts in place of the feed-forward. llama.cpp calls it llama (see the family of that
name)."""

from __future__ import annotations

from inferd.blocks.experts import RouterSpec
from inferd.models.families.mistral import mixer
from inferd.models.family import Config, Family
from inferd.models.hf_config import experts, layer_windows, llama_like, positive_int
from inferd.models.names import HF_NAMES, in_layers
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    block = experts(
        config,
        RouterSpec(positive_int(config, "num_experts_per_tok", 2)),
        positive_int(config, "num_local_experts", 8),
        positive_int(config, "intermediate_size"),
    )
    return llama_like(
        config,
        "MixtralForCausalLM",
        windows=layer_windows(config, config.get("sliding_window")),
        mixer=lambda spec: mixer(config, spec),
        feed_forward=lambda layer: block,
    )


FAMILY = Family(
    architectures=("MixtralForCausalLM",),
    headless=("MixtralModel",),
    model_types=("mixtral",),
    describe=describe,
    names={
        **HF_NAMES,
        **in_layers(
            "model.layers.{layer}.block_sparse_moe.",
            {
                "feed_forward.router": "gate",
                "feed_forward.experts.gate": "experts.{expert}.w1",
                "feed_forward.experts.up": "experts.{expert}.w3",
                "feed_forward.experts.down": "experts.{expert}.w2",
            },
        ),
    },
)
