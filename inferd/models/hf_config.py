"""config.json -> descriptions: what families read alike, in both key styles of transformers
(4: rope_theta, rope_scaling; 5: rope_parameters). Every refusal is a StartupError naming the key."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.experts import ExpertsSpec, RouterSpec
from inferd.blocks.feed_forward import Activation, FeedForwardSpec
from inferd.blocks.layer import FeedForwardBlockSpec, LayerSpec
from inferd.blocks.norm import NormSpec, rms
from inferd.blocks.rope import (
    DivisorScaling,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)
from inferd.errors import StartupError
from inferd.models.family import Config, is_gguf
from inferd.models.spec import HeadSpec, ModelSpec

# Hugging Face's names -> the block's.
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def positive_int(config: Config, key: str, default: int | None = None) -> int:
    """config[key] as an integer of at least 1; `default` when it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise StartupError(f"config.json: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise StartupError(f"config.json: {key} is {value!r}, not a positive integer")
    return value


def positive_float(config: Config, key: str, default: float | None = None) -> float:
    """config[key] as a finite number above 0; `default` when it is absent or null."""
    value = config.get(key)
    if value is None:
        if default is None:
            raise StartupError(f"config.json: {key} is missing")
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise StartupError(f"config.json: {key} is {value!r}, not a positive number")
    return float(value)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes that decoders state under the same keys."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int


def sizes(config: Config) -> Sizes:
    """Raises StartupError for heads that do not share the KV heads evenly."""
    hidden, layers = positive_int(config, "hidden_size"), positive_int(config, "num_hidden_layers")
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    head_dim = positive_int(config, "head_dim", hidden // heads or None)
    if heads % kv_heads:
        raise StartupError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    return Sizes(hidden, layers, heads, kv_heads, head_dim)


def rms_norm(config: Config, offset: float = 0.0) -> NormSpec:
    """transformers has a default for its eps, a GGUF header must state it. offset: see NormSpec."""
    return rms(positive_float(config, "rms_norm_eps", None if is_gguf(config) else 1e-6), offset)


def activation(config: Config, key: str = "hidden_act", default: str = "silu") -> Activation:
    name = config.get(key) or default
    if name not in ACTIVATIONS:
        raise StartupError(f"config.json: {key} {name!r} is not supported ({', '.join(sorted(ACTIVATIONS))} are)")
    return ACTIVATIONS[name]


def llama_like(
    config: Config,
    architecture: str,
    *,
    windows: tuple[int, ...] | None = None,
    mixer: Callable[[AttentionSpec], AttentionSpec] = lambda spec: spec,
    feed_forward: Callable[[int], FeedForwardBlockSpec] | None = None,
) -> ModelSpec:
    """A Llama-like decoder: RMSNorm before grouped-query attention with rotary positions and before a feed-forward
    gated by SiLU. What families differ in comes as arguments.

    mixer: changes the attention of every layer. feed_forward: that of each layer, from its index.
    """
    size, norm = sizes(config), rms_norm(config)
    rope = rope_spec(config, size.head_dim)
    attention = mixer(
        AttentionSpec(
            num_heads=size.heads,
            num_kv_heads=size.kv_heads,
            head_dim=size.head_dim,
            scale=size.head_dim**-0.5,
            rope=rope,
        )
    )
    of_layer = feed_forward or (lambda index: gated_feed_forward(config))
    return ModelSpec(
        architecture=architecture,
        hidden_size=size.hidden,
        vocab_size=positive_int(config, "vocab_size"),
        context_length=context_length(config, rope.scaling),
        layers=tuple(
            LayerSpec(
                mixer=replace(attention, window=window),
                feed_forward=of_layer(index),
                mixer_norm=norm,
                feed_forward_norm=norm,
            )
            for index, window in enumerate(windows or (0,) * size.layers)
        ),
        norm=norm,
        head=head(config),
    )


def gated_feed_forward(config: Config) -> FeedForwardSpec:
    return FeedForwardSpec(
        positive_int(config, "intermediate_size"), activation(config), has_bias=bool(config.get("mlp_bias", False))
    )


def maybe_float(config: Config, key: str) -> float:
    """config[key] as a number above 0; 0 when it is absent or null."""
    return 0.0 if config.get(key) is None else positive_float(config, key)


def experts(config: Config, router: RouterSpec, num_experts: int, intermediate_size: int) -> ExpertsSpec:
    """Raises StartupError for a token that would visit more experts than there are."""
    if router.top_k > num_experts:
        raise StartupError(f"config.json: num_experts_per_tok is {router.top_k}, of {num_experts} experts")
    return ExpertsSpec(num_experts, intermediate_size, activation(config), router)


def head(config: Config, default: bool = False) -> HeadSpec:
    return HeadSpec(is_tied=bool(config.get("tie_word_embeddings", default)))


def biased(config: Config, key: str = "attention_bias") -> Callable[[AttentionSpec], AttentionSpec]:
    """Attention with all four biases where the config says so; a GGUF file may have those of q, k and v alone."""
    bias = bool(config.get(key, False))
    o_bias = bool(config.get("attention_output_bias", bias))
    return lambda spec: replace(spec, qkv_bias=bias, o_bias=o_bias)


def layer_windows(config: Config, window: int | None, first_sliding: int = 0) -> tuple[int, ...]:
    """Window of each layer: layer_types where the config has them, else `window` from layer first_sliding on."""
    layers = positive_int(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple((window or 0) if index >= first_sliding else 0 for index in range(layers))
    known = {"full_attention": 0, "sliding_attention": window or 0}
    unknown = sorted({str(kind) for kind in kinds} - set(known))
    if window is None and "sliding_attention" in kinds:
        raise StartupError("config.json: layer_types has sliding_attention, and there is no sliding_window")
    if unknown or len(kinds) != layers:
        raise StartupError(
            f"config.json: layer_types must be {layers} of full_attention, sliding_attention; got {len(kinds)}"
            + (f", among them {', '.join(unknown)}" if unknown else "")
        )
    return tuple(known[kind] for kind in kinds)


def context_length(config: Config, scaling: RopeScaling | None) -> int:
    """Positions the model serves. YaRN and linear configs state the length before scaling, Llama 3 the one after."""
    stated = positive_int(config, "max_position_embeddings")
    if isinstance(scaling, YarnScaling):
        return max(stated, int(scaling.original_context * scaling.factor))
    if isinstance(scaling, LinearScaling):
        return int(stated * scaling.factor)
    return stated


def rope_spec(config: Config, head_dim: int, layer_type: str | None = None) -> RopeSpec:
    """The rotary embedding; of layers of one type where the config has parameters per type."""
    parameters = config.get("rope_parameters") or {**(config.get("rope_scaling") or {})}
    if layer_type is not None and isinstance(parameters, Mapping):
        parameters = parameters.get(layer_type, parameters)
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        raise StartupError("config.json: rope_parameters per layer type are not supported")
    theta = positive_float(parameters, "rope_theta", positive_float(config, "rope_theta", 10000.0))
    fraction = positive_float(parameters, "partial_rotary_factor", positive_float(config, "partial_rotary_factor", 1.0))
    rotary_dim = int(round(head_dim * fraction, 6))  # 30 of 44 come back as 29.99..
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise StartupError(f"config.json: partial_rotary_factor {fraction} of head_dim {head_dim} is no even dimension")
    scaling = rope_scaling(config, parameters, positive_int(config, "max_position_embeddings"))
    divisors: tuple[tuple[float, ...], ...] = ()
    if isinstance(scaling, DivisorScaling):
        divisors = (scaling.divisors,)
    elif isinstance(scaling, LongScaling):
        divisors = (scaling.short, scaling.long)
    for each in divisors:
        if len(each) != rotary_dim // 2:
            raise StartupError(f"config.json: {len(each)} rope factors, expected {rotary_dim // 2}")
    return RopeSpec(theta, rotary_dim, scaling)


def rope_scaling(config: Config, parameters: Config, stated_context: int) -> RopeScaling | None:
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    original = positive_int(parameters, "original_max_position_embeddings", stated_context)
    if kind == "linear":
        return LinearScaling(positive_float(parameters, "factor"))
    if kind == "llama3":
        return Llama3Scaling(
            factor=positive_float(parameters, "factor"),
            low_freq_factor=positive_float(parameters, "low_freq_factor"),
            high_freq_factor=positive_float(parameters, "high_freq_factor"),
            original_context=original,
        )
    if kind == "yarn":
        return yarn_scaling(parameters, original, stated_context)
    if kind in ("longrope", "su"):
        return long_scaling(config, parameters, stated_context)
    raise StartupError(
        f"config.json: rope_type {kind!r} is not supported (default, linear, llama3, longrope and yarn are)"
    )


def long_scaling(config: Config, parameters: Config, stated_context: int) -> RopeScaling:
    """Phi-3 states the original context beside the parameters. The attention factor follows from the two contexts
    unless it is stated (Ding et al. 2024, as transformers computes it)."""
    original = config.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings")
    original_context = positive_int(
        {"original_max_position_embeddings": original or stated_context}, "original_max_position_embeddings"
    )
    sets = []
    for key in ("short_factor", "long_factor"):
        values = parameters.get(key)
        if not isinstance(values, list) or not all(isinstance(each, int | float) and each > 0 for each in values):
            raise StartupError(f"config.json: {key} of longrope must be a list of positive numbers")
        sets.append(tuple(map(float, values)))
    stated = parameters.get("attention_factor")
    if stated is None:
        ratio = stated_context / original_context if original else positive_float(parameters, "factor", 1.0)
        stated = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original_context))
    factor = positive_float({"attention_factor": stated}, "attention_factor")
    if sets[0] == sets[1]:
        return DivisorScaling(sets[0], factor)
    return LongScaling(sets[0], sets[1], factor, original_context)


def yarn_scaling(parameters: Config, original: int, stated_context: int) -> YarnScaling:
    factor = positive_float(parameters, "factor", stated_context / original)
    attention = parameters.get("attention_factor")
    if attention is None:
        numerator = parameters.get("mscale") or 0
        denominator = parameters.get("mscale_all_dim") or 0
        attention = yarn_temperature(factor, 1.0)
        if numerator and denominator:
            attention = yarn_temperature(factor, numerator) / yarn_temperature(factor, denominator)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=positive_float(parameters, "beta_fast", 32.0),
        beta_slow=positive_float(parameters, "beta_slow", 1.0),
        attention_factor=float(attention),
        truncate=bool(parameters.get("truncate", True)),
    )


def yarn_temperature(factor: float, scale: float) -> float:
    """0.1 * scale * ln(factor) + 1 (Peng et al. 2023, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
