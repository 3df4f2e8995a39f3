"""DeepSeek V2 and V3 (R1 and Kimi K2 are V3): latent attention, and experts beside shared ones behind the first
layers."""

from __future__ import annotations

from dataclasses import replace

from inferd.blocks.experts import ExpertsSpec, RouterSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.latent_attention import LatentAttentionSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.rope import RopeSpec, YarnScaling
from inferd.errors import StartupError
from inferd.models.family import Config, Family
from inferd.models.hf_config import (
    activation,
    context_length,
    experts,
    gated_feed_forward,
    head,
    positive_float,
    positive_int,
    rms_norm,
    rope_spec,
    yarn_temperature,
)
from inferd.models.names import HF_NAMES, in_layers
from inferd.models.spec import ModelSpec

V3 = "DeepseekV3ForCausalLM"


def describe(config: Config) -> ModelSpec:
    is_v3 = V3 in (config.get("architectures") or ()) or config.get("model_type") == "deepseek_v3"
    norm, mixer = rms_norm(config), latent_attention(config, is_v3)
    block, dense = expert_block(config, is_v3), gated_feed_forward(config)
    num_dense = int(config.get("first_k_dense_replace") or 0)
    layer = LayerSpec(mixer, dense, mixer_norm=norm, feed_forward_norm=norm)
    return ModelSpec(
        architecture=V3 if is_v3 else "DeepseekV2ForCausalLM",
        hidden_size=positive_int(config, "hidden_size"),
        vocab_size=positive_int(config, "vocab_size"),
        context_length=context_length(config, mixer.rope.scaling),
        layers=tuple(
            layer if index < num_dense else replace(layer, feed_forward=block)
            for index in range(positive_int(config, "num_hidden_layers"))
        ),
        norm=norm,
        head=head(config),
    )


def latent_attention(config: Config, is_v3: bool) -> LatentAttentionSpec:
    plain, rotary = positive_int(config, "qk_nope_head_dim"), positive_int(config, "qk_rope_head_dim")
    rope = rope_spec(config, rotary)
    return LatentAttentionSpec(
        num_heads=positive_int(config, "num_attention_heads"),
        rank=positive_int(config, "kv_lora_rank"),
        plain_dim=plain,
        value_dim=positive_int(config, "v_head_dim"),
        scale=(plain + rotary) ** -0.5 * score_factor(config, rope),
        rope=replace(rope, interleaved=not is_v3 or bool(config.get("rope_interleave", True))),
        norm=replace(rms_norm(config), eps=1e-6),  # whatever the other norms' is
        query_rank=0 if config.get("q_lora_rank") is None else positive_int(config, "q_lora_rank"),
        has_bias=bool(config.get("attention_bias", False)),
    )


def score_factor(config: Config, rope: RopeSpec) -> float:
    """YaRN's temperature of all dimensions, squared, multiplies the scores."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope.scaling, YarnScaling) or not parameters.get("mscale_all_dim"):
        return 1.0
    return yarn_temperature(rope.scaling.factor, positive_float(parameters, "mscale_all_dim")) ** 2


def expert_block(config: Config, is_v3: bool) -> ExpertsSpec:
    method = config.get("topk_method", "noaux_tc" if is_v3 else "greedy")
    if method not in ("greedy", "group_limited_greedy", "noaux_tc"):
        raise StartupError(f"config.json: topk_method {method!r} is not supported")
    has_groups = method != "greedy"
    router = RouterSpec(
        top_k=positive_int(config, "num_experts_per_tok"),
        scores="sigmoid" if is_v3 else "softmax",
        is_normalized=is_v3 and bool(config.get("norm_topk_prob", True)),
        scale=positive_float(config, "routed_scaling_factor", 2.5 if is_v3 else 1.0),
        has_correction=is_v3,
        num_groups=positive_int(config, "n_group", 1) if has_groups else 1,
        top_groups=positive_int(config, "topk_group", 1) if has_groups else 1,
    )
    size = positive_int(config, "moe_intermediate_size")
    count = positive_int(config, "num_local_experts", positive_int(config, "n_routed_experts", 1))
    block, shared = experts(config, router, count, size), config.get("n_shared_experts")
    return replace(block, shared=FeedForwardSpec(size * int(shared), activation(config)) if shared else None)


FAMILY = Family(
    architectures=("DeepseekV2ForCausalLM", V3),
    headless=("DeepseekV2Model", "DeepseekV3Model"),
    model_types=("deepseek_v2", "deepseek_v3"),
    describe=describe,
    names={
        **HF_NAMES,
        **in_layers(
            "model.layers.{layer}.",
            {
                "mixer.q_a": "self_attn.q_a_proj",
                "mixer.q_norm": "self_attn.q_a_layernorm",
                "mixer.q_b": "self_attn.q_b_proj",
                "mixer.kv_a": "self_attn.kv_a_proj_with_mqa",
                "mixer.kv_norm": "self_attn.kv_a_layernorm",
                "mixer.kv_b": "self_attn.kv_b_proj",
                "feed_forward.correction": "mlp.gate.e_score_correction_bias",
                "feed_forward.shared.gate": "mlp.shared_experts.gate_proj",
                "feed_forward.shared.up": "mlp.shared_experts.up_proj",
                "feed_forward.shared.down": "mlp.shared_experts.down_proj",
            },
        ),
    },
)
