"""GPT-2: learned positions, LayerNorm, tanh-approximated GELU; matrices stored [in, out], q | k | v as one."""

from __future__ import annotations

from collections.abc import Iterator

from inferd.errors import StartupError
from inferd.models.hf_config import Config, positive_float, positive_int
from inferd.models.spec import Activation, DecoderSpec
from inferd.models.weights import Rule, Split

ARCHITECTURE = "GPT2LMHeadModel"
ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


def spec_from_hf(config: Config) -> DecoderSpec:
    """Raises StartupError for attention scaled otherwise than by the square root of the head's size."""
    hidden, heads = positive_int(config, "n_embd"), positive_int(config, "n_head")
    layers, positions = positive_int(config, "n_layer"), positive_int(config, "n_positions")
    if hidden % heads:
        raise StartupError(f"config.json: n_embd {hidden} is no multiple of n_head {heads}")
    if not config.get("scale_attn_weights", True) or config.get("scale_attn_by_inverse_layer_idx", False):
        raise StartupError("config.json: scale_attn_by_inverse_layer_idx and unscaled attention are not supported")
    return DecoderSpec(
        architecture=ARCHITECTURE,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "n_inner", 4 * hidden),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        vocab_size=positive_int(config, "vocab_size"),
        norm_eps=positive_float(config, "layer_norm_epsilon", 1e-5),
        rope=None,
        windows=(0,) * layers,
        context_length=positions,
        qkv_bias=True,
        o_bias=True,
        mlp_bias=True,
        tied_embeddings=bool(config.get("tie_word_embeddings", True)),
        norm="layer",
        activation=activation(str(config.get("activation_function", "gelu_new"))),
        num_positions=positions,
    )


def activation(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise StartupError(f"config.json: activation {name!r} is not supported ({', '.join(ACTIVATIONS)} are)")
    return ACTIVATIONS[name]


def weight_rules(spec: DecoderSpec) -> tuple[Rule, ...]:
    return tuple(_rules(spec))


def _rules(spec: DecoderSpec) -> Iterator[Rule]:
    hidden, inner, prefix = spec.hidden_size, spec.intermediate_size, "transformer.h.{layer}."
    yield Rule("transformer.wte.weight", "embedding", (spec.vocab_size, hidden), "vocab_rows")
    yield Rule("transformer.wpe.weight", "positions", (spec.num_positions, hidden))
    yield Rule("transformer.ln_f.weight", "norm", (hidden,))
    yield Rule("transformer.ln_f.bias", "norm_bias", (hidden,))
    if not spec.tied_embeddings:
        yield Rule("lm_head.weight", "lm_head", (spec.vocab_size, hidden), "vocab_rows")
    for norm, target in (("ln_1", "attention_norm"), ("ln_2", "mlp_norm")):
        yield Rule(f"{prefix}{norm}.weight", target, (hidden,))
        yield Rule(f"{prefix}{norm}.bias", f"{target}_bias", (hidden,))
    splits: tuple[Split, ...] = ("q_rows", "kv_rows", "kv_rows")
    for part, split in enumerate(splits):
        yield Rule(f"{prefix}attn.c_attn.weight", "qkv", (hidden, hidden), split, True, part, 3)
        yield Rule(f"{prefix}attn.c_attn.bias", "qkv_bias", (hidden,), split, False, part, 3)
    yield Rule(f"{prefix}attn.c_proj.weight", "o", (hidden, hidden), "q_columns", True)
    yield Rule(f"{prefix}attn.c_proj.bias", "o_bias", (hidden,))
    yield Rule(f"{prefix}mlp.c_fc.weight", "gate_up", (inner, hidden), "inner_rows", True)
    yield Rule(f"{prefix}mlp.c_fc.bias", "gate_up_bias", (inner,), "inner_rows")
    yield Rule(f"{prefix}mlp.c_proj.weight", "down", (hidden, inner), "inner_columns", True)
    yield Rule(f"{prefix}mlp.c_proj.bias", "down_bias", (hidden,))
