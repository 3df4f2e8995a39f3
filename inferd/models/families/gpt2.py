"""GPT-2: learned positions, LayerNorm, tanh-approximated GELU; matrices stored [in, out], q | k | v as one."""

from __future__ import annotations

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import layer_norm
from inferd.errors import StartupError
from inferd.models.family import Config, Family
from inferd.models.hf_config import activation, head, positive_float, positive_int
from inferd.models.names import Stored, in_layers
from inferd.models.spec import EmbeddingSpec, ModelSpec


def describe(config: Config) -> ModelSpec:
    """The scale of the scores may be that of the head's size, none, or divided by the number of the layer."""
    hidden, heads = positive_int(config, "n_embd"), positive_int(config, "n_head")
    layers, positions = positive_int(config, "n_layer"), positive_int(config, "n_positions")
    if hidden % heads:
        raise StartupError(f"config.json: n_embd {hidden} is no multiple of n_head {heads}")
    scale = (hidden // heads) ** -0.5 if config.get("scale_attn_weights", True) else 1.0
    by_layer = bool(config.get("scale_attn_by_inverse_layer_idx", False))
    norm = layer_norm(positive_float(config, "layer_norm_epsilon", 1e-5))
    feed_forward = FeedForwardSpec(
        positive_int(config, "n_inner", 4 * hidden),
        activation(config, "activation_function", "gelu_new"),
        is_gated=False,
        has_bias=True,
    )

    def layer(index: int) -> LayerSpec:
        divisor = index + 1 if by_layer else 1
        mixer = AttentionSpec(heads, heads, hidden // heads, scale / divisor, qkv_bias=True, o_bias=True)
        return LayerSpec(mixer, feed_forward, mixer_norm=norm, feed_forward_norm=norm)

    return ModelSpec(
        architecture="GPT2LMHeadModel",
        hidden_size=hidden,
        vocab_size=positive_int(config, "vocab_size"),
        context_length=positions,
        layers=tuple(map(layer, range(layers))),
        norm=norm,
        head=head(config, default=True),
        embedding=EmbeddingSpec(num_positions=positions),
    )


QKV = Stored("attn.c_attn", fused=("q", "k", "v"), is_transposed=True)

FAMILY = Family(
    architectures=("GPT2LMHeadModel",),
    headless=("GPT2Model",),
    model_types=("gpt2",),
    describe=describe,
    names={
        "embedding": "transformer.wte",
        "positions": "transformer.wpe",
        "norm": "transformer.ln_f",
        "head": "lm_head",
        **in_layers(
            "transformer.h.{layer}.",
            {
                "mixer_norm": "ln_1",
                "mixer.q": QKV,
                "mixer.k": QKV,
                "mixer.v": QKV,
                "mixer.o": Stored("attn.c_proj", is_transposed=True),
                "feed_forward_norm": "ln_2",
                "feed_forward.up": Stored("mlp.c_fc", is_transposed=True),
                "feed_forward.down": Stored("mlp.c_proj", is_transposed=True),
            },
        ),
    },
    ignored=r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",
)
