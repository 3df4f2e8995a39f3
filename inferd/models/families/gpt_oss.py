"""gpt-oss: experts with clamped SwiGLU and biases everywhere, attention sinks, a window in every other layer, YaRN."""

from __future__ import annotations

from dataclasses import replace

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.experts import ExpertsSpec, RouterSpec
from inferd.errors import StartupError
from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import experts, layer_windows, llama_like, positive_int
from inferd.models.names import GGUF_NAMES, HF_NAMES, Stored, in_layers
from inferd.models.spec import ModelSpec

# What the block's clamped SwiGLU computes with.
ACTIVATION = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}


def describe(config: Config) -> ModelSpec:
    layers, window = positive_int(config, "num_hidden_layers"), positive_int(config, "sliding_window", 128)
    kinds = config.get("layer_types") or ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    block = expert_block(config)
    if is_gguf(config) and config.get("rope_scaling"):
        # The model was trained with a ramp between fractions of dimensions, which a header cannot state.
        config = {**config, "rope_scaling": {**config["rope_scaling"], "truncate": False}}
    return llama_like(
        {**config, "head_dim": config.get("head_dim") or 64},
        "GptOssForCausalLM",
        windows=layer_windows({**config, "layer_types": kinds}, window),
        mixer=mixer,
        feed_forward=lambda layer: block,
    )


def mixer(spec: AttentionSpec) -> AttentionSpec:
    return replace(spec, qkv_bias=True, o_bias=True, has_sinks=True)


def expert_block(config: Config) -> ExpertsSpec:
    """Raises StartupError for another activation than that of the published models."""
    for key, value in ACTIVATION.items():
        if config.get(key, value) != value:
            raise StartupError(f"config.json: {key} {config[key]!r} is not supported ({value} is)")
    router = RouterSpec(positive_int(config, "num_experts_per_tok", 4), has_bias=True)
    size = positive_int(config, "moe_intermediate_size" if is_gguf(config) else "intermediate_size")
    block = experts(config, router, positive_int(config, "num_local_experts"), size)
    return replace(block, activation="clamped_swiglu", has_bias=True)


def stacked(name: str, *fused: str) -> Stored:
    """All experts in one tensor, [in, out] each; gate and up take turns."""
    return Stored(name, fused, is_interleaved=bool(fused), is_transposed=True, is_stacked=True)


GATE_UP, GATE_UP_BIAS = stacked("gate_up_proj", "gate", "up"), stacked("gate_up_proj_bias", "gate", "up")
FAMILY = Family(
    architectures=("GptOssForCausalLM",),
    headless=("GptOssModel",),
    model_types=("gpt_oss",),
    gguf=("gpt-oss",),
    describe=describe,
    names={
        **HF_NAMES,
        "feed_forward.router": "model.layers.{layer}.mlp.router",
        **in_layers(
            "model.layers.{layer}.mlp.experts.",
            {
                "feed_forward.experts.gate.weight": GATE_UP,
                "feed_forward.experts.up.weight": GATE_UP,
                "feed_forward.experts.down.weight": stacked("down_proj"),
                "feed_forward.experts.gate.bias": GATE_UP_BIAS,
                "feed_forward.experts.up.bias": GATE_UP_BIAS,
                "feed_forward.experts.down.bias": stacked("down_proj_bias"),
            },
        ),
    },
    gguf_names={**GGUF_NAMES, "feed_forward_norm": "blk.{layer}.post_attention_norm"},
)
