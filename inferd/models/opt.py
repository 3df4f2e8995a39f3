"""OPT: learned positions from row 2 on, LayerNorm, an MLP with ReLU (GELU in Galactica)."""

from __future__ import annotations

from collections.abc import Iterator

from inferd.errors import StartupError
from inferd.models.gpt2 import activation
from inferd.models.hf_config import Config, positive_int
from inferd.models.spec import DecoderSpec
from inferd.models.weights import Rule, Split

ARCHITECTURE = "OPTForCausalLM"
POSITION_OFFSET = 2  # the first rows of the position table are never used
NORM_EPS = 1e-5
# Stated by every config; the values are those of all sizes but 350m, whose norms come after, with projections around.
REQUIRED = {
    "do_layer_norm_before": True,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "_remove_final_layer_norm": False,
}


def spec_from_hf(config: Config) -> DecoderSpec:
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
    return DecoderSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "ffn_dim"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=positive_int(config, "vocab_size"),
        norm_eps=NORM_EPS,
        rope=None,
        windows=(0,) * layers,
        context_length=positions,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        norm="layer",
        activation=activation(str(config.get("activation_function", "relu"))),
        num_positions=positions + POSITION_OFFSET,
        position_offset=POSITION_OFFSET,
    )


def weight_rules(spec: DecoderSpec) -> tuple[Rule, ...]:
    return tuple(_rules(spec))


def _rules(spec: DecoderSpec) -> Iterator[Rule]:
    hidden, inner, prefix = spec.hidden_size, spec.intermediate_size, "model.decoder.layers.{layer}."
    yield Rule("model.decoder.embed_tokens.weight", "embedding", (spec.vocab_size, hidden), "vocab_rows")
    yield Rule("model.decoder.embed_positions.weight", "positions", (spec.num_positions, hidden))
    yield Rule("model.decoder.final_layer_norm.weight", "norm", (hidden,))
    yield Rule("model.decoder.final_layer_norm.bias", "norm_bias", (hidden,))
    if not spec.tied_embeddings:
        yield Rule("lm_head.weight", "lm_head", (spec.vocab_size, hidden), "vocab_rows")
    for norm, target in (("self_attn_layer_norm", "attention_norm"), ("final_layer_norm", "mlp_norm")):
        yield Rule(f"{prefix}{norm}.weight", target, (hidden,))
        yield Rule(f"{prefix}{norm}.bias", f"{target}_bias", (hidden,))
    parts: tuple[tuple[str, Split], ...] = (("q", "q_rows"), ("k", "kv_rows"), ("v", "kv_rows"))
    for part, split in parts:
        yield Rule(f"{prefix}self_attn.{part}_proj.weight", "qkv", (hidden, hidden), split)
        yield Rule(f"{prefix}self_attn.{part}_proj.bias", "qkv_bias", (hidden,), split)
    yield Rule(f"{prefix}self_attn.out_proj.weight", "o", (hidden, hidden), "q_columns")
    yield Rule(f"{prefix}self_attn.out_proj.bias", "o_bias", (hidden,))
    yield Rule(f"{prefix}fc1.weight", "gate_up", (inner, hidden), "inner_rows")
    yield Rule(f"{prefix}fc1.bias", "gate_up_bias", (inner,), "inner_rows")
    yield Rule(f"{prefix}fc2.weight", "down", (hidden, inner), "inner_columns")
    yield Rule(f"{prefix}fc2.bias", "down_bias", (hidden,))
