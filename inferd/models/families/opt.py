"""OPT: learned positions from row 2 on, LayerNorm, a feed-forward with ReLU (GELU in Galactica)."""

from __future__ import annotations

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import layer_norm
from inferd.errors import StartupError
from inferd.models.family import Config, Family
from inferd.models.hf_config import activation, head, positive_int
from inferd.models.names import in_layers
from inferd.models.spec import EmbeddingSpec, ModelSpec

POSITION_OFFSET = 2  # the first rows of the position table are never used
NORM_EPS = 1e-5
# Stated by every config; the values are those of all sizes but 350m, whose norms come after, with projections around.
REQUIRED = {
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "_remove_final_layer_norm": False,
}


def describe(config: Config) -> ModelSpec:
    """Raises StartupError for the variant of opt-350m (norms after the blocks, projected embeddings)."""
    hidden, heads = positive_int(config, "hidden_size"), positive_int(config, "num_attention_heads")
    layers, positions = positive_int(config, "num_hidden_layers"), positive_int(config, "max_position_embeddings")
    for key, value in REQUIRED.items():
        if bool(config.get(key, value)) is not value:
            raise StartupError(f"config.json: {key} {config[key]!r} is not supported ({value} is)")
    if positive_int(config, "word_embed_proj_dim", hidden) != hidden or hidden % heads:
        raise StartupError(
            f"config.json: word_embed_proj_dim must be hidden_size ({hidden}), and that a multiple of {heads} heads"
        )
    head_dim, norm = hidden // heads, layer_norm(NORM_EPS)
    layer = LayerSpec(
        mixer=AttentionSpec(heads, heads, head_dim, head_dim**-0.5, qkv_bias=True, o_bias=True),
        feed_forward=FeedForwardSpec(
            positive_int(config, "ffn_dim"),
            activation(config, "activation_function", "relu"),
            is_gated=False,
            has_bias=True,
        ),
        mixer_norm=norm,
        feed_forward_norm=norm,
    )
    return ModelSpec(
        architecture="OPTForCausalLM",
        hidden_size=hidden,
        vocab_size=positive_int(config, "vocab_size"),
        context_length=positions,
        layers=(layer,) * layers,
        norm=norm,
        head=head(config, default=True),
        embedding=EmbeddingSpec(num_positions=positions + POSITION_OFFSET, position_offset=POSITION_OFFSET),
    )


FAMILY = Family(
    architectures=("OPTForCausalLM",),
    headless=("OPTModel",),
    model_types=("opt",),
    describe=describe,
    names={
        "embedding": "model.decoder.embed_tokens",
        "positions": "model.decoder.embed_positions",
        "norm": "model.decoder.final_layer_norm",
        "head": "lm_head",
        **in_layers(
            "model.decoder.layers.{layer}.",
            {
                "mixer_norm": "self_attn_layer_norm",
                "mixer.q": "self_attn.q_proj",
                "mixer.k": "self_attn.k_proj",
                "mixer.v": "self_attn.v_proj",
                "mixer.o": "self_attn.out_proj",
                "feed_forward_norm": "final_layer_norm",
                "feed_forward.up": "fc1",
                "feed_forward.down": "fc2",
            },
        ),
    },
)
