"""config.json -> the fields of a DecoderSpec that all llama-like families read alike, both key styles of transformers
(4: rope_theta, rope_scaling; 5: rope_parameters). Every refusal is a StartupError naming the key."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inferd.errors import StartupError
from inferd.models.spec import (
    DecoderSpec,
    DivisorScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    RopeSpec,
    YarnScaling,
)

ACTIVATIONS = ("silu", "swish")
Config = Mapping[str, Any]


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


def llama_like(
    config: Config,
    architecture: str,
    *,
    windows: tuple[int, ...] | None = None,
    qk_norm: bool = False,
    qkv_bias: bool = False,
    o_bias: bool = False,
) -> DecoderSpec:
    """The spec of a llama-like config; what families differ in comes as arguments."""
    hidden, layers = positive_int(config, "hidden_size"), positive_int(config, "num_hidden_layers")
    heads = positive_int(config, "num_attention_heads")
    kv_heads = positive_int(config, "num_key_value_heads", heads)
    head_dim = positive_int(config, "head_dim", hidden // heads or None)
    if heads % kv_heads:
        raise StartupError(f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}")
    activation = config.get("hidden_act", "silu")
    if activation not in ACTIVATIONS:
        raise StartupError(f"config.json: hidden_act {activation!r} is not supported (silu is)")
    rope = rope_spec(config, head_dim)
    return DecoderSpec(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=positive_int(config, "vocab_size"),
        norm_eps=positive_float(config, "rms_norm_eps", 1e-6),
        rope=rope,
        windows=windows or (0,) * layers,
        context_length=context_length(config, rope.scaling),
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
    )


def layer_windows(config: Config, window: int | None, first_sliding: int = 0) -> tuple[int, ...]:
    """Window of each layer: layer_types where the config has them, else `window` from layer first_sliding on."""
    layers = positive_int(config, "num_hidden_layers")
    kinds = config.get("layer_types")
    if kinds is None:
        return tuple((window or 0) if index >= first_sliding else 0 for index in range(layers))
    known = {"full_attention": 0, "sliding_attention": window or 0}
    unknown = sorted({str(kind) for kind in kinds} - set(known))
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


def rope_spec(config: Config, head_dim: int) -> RopeSpec:
    parameters = config.get("rope_parameters") or {**(config.get("rope_scaling") or {})}
    if not isinstance(parameters, Mapping) or any(isinstance(value, Mapping) for value in parameters.values()):
        raise StartupError("config.json: rope_parameters per layer type are not supported")
    theta = positive_float(parameters, "rope_theta", positive_float(config, "rope_theta", 10000.0))
    fraction = positive_float(parameters, "partial_rotary_factor", positive_float(config, "partial_rotary_factor", 1.0))
    rotary_dim = int(head_dim * fraction)
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise StartupError(f"config.json: partial_rotary_factor {fraction} of head_dim {head_dim} is no even dimension")
    scaling = rope_scaling(parameters, positive_int(config, "max_position_embeddings"))
    if isinstance(scaling, DivisorScaling) and len(scaling.divisors) != rotary_dim // 2:
        raise StartupError(f"config.json: {len(scaling.divisors)} rope factors, expected {rotary_dim // 2}")
    return RopeSpec(theta, rotary_dim, scaling)


def rope_scaling(parameters: Config, stated_context: int) -> RopeScaling | None:
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
    divisors = parameters.get("long_factor")
    if kind == "longrope" and divisors and divisors == parameters.get("short_factor"):
        return DivisorScaling(tuple(map(float, divisors)), positive_float(parameters, "attention_factor", 1.0))
    raise StartupError(f"config.json: rope_type {kind!r} is not supported (default, linear, llama3 and yarn are)")


def yarn_scaling(parameters: Config, original: int, stated_context: int) -> YarnScaling:
    factor = positive_float(parameters, "factor", stated_context / original)
    attention = parameters.get("attention_factor")
    if attention is None:
        numerator = parameters.get("mscale") or 0
        denominator = parameters.get("mscale_all_dim") or 0
        attention = _temperature(factor, 1.0)
        if numerator and denominator:
            attention = _temperature(factor, numerator) / _temperature(factor, denominator)
    return YarnScaling(
        factor=factor,
        original_context=original,
        beta_fast=positive_float(parameters, "beta_fast", 32.0),
        beta_slow=positive_float(parameters, "beta_slow", 1.0),
        attention_factor=float(attention),
        truncate=bool(parameters.get("truncate", True)),
    )


def _temperature(factor: float, scale: float) -> float:
    """0.1 * scale * ln(factor) + 1 (Peng et al. 2023, section 3.4)."""
    return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0
