"""GGUF metadata -> the config.json and generation_config.json that the same model has at Hugging Face."""

from __future__ import annotations

import math
from typing import Any

from inferd.checkpoint.gguf_metadata import Metadata
from inferd.errors import StartupError

# general.file_type of unquantized files -> dtype
FLOAT_FILE_TYPES = {0: "float32", 1: "float16", 32: "bfloat16"}

GENERATION_KEYS = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}

# rope.scaling.finetuned and original_context_length without yarn say how the model was made, not what it computes.
ROPE_KEYS = frozenset(
    {"rope.freq_base", "rope.freq_base_swa", "rope.dimension_count", "rope.scale_linear"}
    | {f"rope.scaling.{name}" for name in ("type", "factor", "attn_factor", "finetuned", "original_context_length")}
    | {"rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"}
)
# What no family reads. One that comes to need such a value takes its key out here.
UNSUPPORTED_KEYS = frozenset(
    {"attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias"}
    | {"embedding_scale", "logit_scale", "residual_scale"}
)


# A per-layer array is the longest value that a description needs; vocabularies are not carried along.
LONGEST_LIST = 1024


def gguf_architecture(metadata: Metadata) -> str:
    """general.architecture. Raises StartupError for a file without one."""
    name = metadata.maybe_string("general.architecture")
    if name is None:
        raise StartupError(f"{metadata.path}: no general.architecture; not a model")
    return name


def gguf_config(
    metadata: Metadata, tensor_names: set[str], vocab_size: int, rope_factors: list[float]
) -> dict[str, Any]:
    """config.json's content, as far as it is common to architectures; the header's own values below the architecture's
    name come along under the key `gguf`, for the family to read.

    What the header does not state is None: whether it is needed is the family's to say.

    tensor_names  GGUF names of the file's tensors (tied embeddings and biases are read off them)
    vocab_size    rows of the embedding matrix
    rope_factors  content of the tensor rope_freqs.weight, empty when the file has none
    """
    prefix = gguf_architecture(metadata)
    hidden = metadata.size(f"{prefix}.embedding_length")
    heads = metadata.maybe_size(f"{prefix}.attention.head_count")
    head_dim = metadata.maybe_size(f"{prefix}.attention.key_length") or (hidden // heads if heads else None)
    config: dict[str, Any] = {
        "gguf_architecture": prefix,
        "gguf": own_values(metadata, prefix),
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": metadata.maybe_size(f"{prefix}.feed_forward_length"),
        "num_hidden_layers": metadata.size(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.maybe_size(f"{prefix}.attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": metadata.maybe_size(f"{prefix}.context_length"),
        "rms_norm_eps": metadata.maybe_number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.maybe_number(f"{prefix}.rope.freq_base") or 10000.0,
        "rope_scaling": rope_scaling(metadata, prefix, rope_factors),
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in tensor_names,
        "attention_output_bias": "blk.0.attn_output.bias" in tensor_names,
        "mlp_bias": "blk.0.ffn_up.bias" in tensor_names,
        "tie_word_embeddings": "output.weight" not in tensor_names,
        "bos_token_id": metadata.maybe_size("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.maybe_size("tokenizer.ggml.eos_token_id"),
    }
    add_variants(config, metadata, prefix)
    return config


def own_values(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """The values below the architecture's name, which are numbers, words and short lists."""
    start = f"{prefix}."
    found = {key.removeprefix(start): value for key, value in metadata.values.items() if key.startswith(start)}
    return {key: value for key, value in found.items() if not isinstance(value, list) or len(value) <= LONGEST_LIST}


def add_variants(config: dict[str, Any], metadata: Metadata, prefix: str) -> None:
    """What only some files state: experts, a sliding window, partial rotary, a float dtype."""
    if experts := metadata.maybe_size(f"{prefix}.expert_count"):
        config["num_local_experts"] = experts
        config["num_experts_per_tok"] = metadata.size(f"{prefix}.expert_used_count")
    if inner := metadata.maybe_size(f"{prefix}.expert_feed_forward_length"):
        config["moe_intermediate_size"] = inner
    if window := metadata.maybe_size(f"{prefix}.attention.sliding_window"):
        config["sliding_window"] = window
    rotary = metadata.maybe_size(f"{prefix}.rope.dimension_count")
    if rotary and rotary != config["head_dim"]:
        config["partial_rotary_factor"] = rotary / config["head_dim"]
    file_type = metadata.maybe_size("general.file_type")
    if file_type in FLOAT_FILE_TYPES:
        config["torch_dtype"] = FLOAT_FILE_TYPES[file_type]


def rope_scaling(metadata: Metadata, prefix: str, factors: list[float]) -> dict[str, Any] | None:
    """Hugging Face's rope_scaling, or None. Llama 3's is stored as one divisor per frequency.

    StartupError for a key that changes the result and has no counterpart."""
    check_keys(metadata, prefix)
    attention = metadata.maybe_number(f"{prefix}.rope.scaling.attn_factor") or 1.0
    if factors:
        theta = metadata.maybe_number(f"{prefix}.rope.freq_base") or 10000.0
        llama3 = llama3_scaling(theta, factors) if attention == 1.0 else None
        return llama3 or {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": attention,
        }
    kind = metadata.maybe_string(f"{prefix}.rope.scaling.type") or "linear"  # a factor alone is a linear one
    factor = metadata.maybe_number(f"{prefix}.rope.scaling.factor")
    factor = factor or metadata.maybe_number(f"{prefix}.rope.scale_linear") or 1.0
    if kind == "yarn" and factor != 1.0:
        return yarn_scaling(metadata, prefix, factor, attention)
    if attention != 1.0:
        raise StartupError(f"{metadata.path}: rope.scaling.attn_factor {attention} is supported for yarn only")
    if kind == "none" or factor == 1.0:
        return None
    if kind != "linear":
        raise StartupError(f"{metadata.path}: rope scaling {kind[:40]!r} is not supported (linear and yarn are)")
    return {"rope_type": "linear", "factor": factor}


def yarn_scaling(metadata: Metadata, prefix: str, factor: float, attention: float) -> dict[str, Any]:
    """GGUF states what the usual attention temperature is multiplied by."""
    optional = {
        "original_max_position_embeddings": metadata.maybe_size(f"{prefix}.rope.scaling.original_context_length"),
        "beta_fast": metadata.maybe_number(f"{prefix}.rope.scaling.yarn_beta_fast"),
        "beta_slow": metadata.maybe_number(f"{prefix}.rope.scaling.yarn_beta_slow"),
        "attention_factor": attention * (1.0 + 0.1 * math.log(factor)) if attention != 1.0 else None,
    }
    return {"rope_type": "yarn", "factor": factor} | {key: value for key, value in optional.items() if value}


def check_keys(metadata: Metadata, prefix: str) -> None:
    """StartupError for metadata that changes what the model computes and that nothing here reads."""
    for key in metadata.values:
        name = key.removeprefix(f"{prefix}.")
        if key != name and ((name.startswith("rope.") and name not in ROPE_KEYS) or name in UNSUPPORTED_KEYS):
            raise StartupError(f"{metadata.path}: metadata {key[:80]} is not supported")


def llama3_scaling(theta: float, factors: list[float]) -> dict[str, Any] | None:
    """The Llama 3 parameters whose per-frequency divisors are `factors`, if they are such.

    The published parameters (low 1, high 4, 8192 original positions) are tried with the largest divisor as the factor;
    frequency i of n is theta^(-i/n).
    """
    parameters = {
        "rope_type": "llama3",
        "factor": round(max(factors), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    for index, divisor in enumerate(factors):
        wavelength = 2 * math.pi * theta ** (index / len(factors))
        smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
        smooth = min(1.0, max(0.0, smooth))
        expected = 1.0 / ((1.0 - smooth) / max(factors) + smooth)
        if not math.isclose(divisor, expected, rel_tol=1e-3):
            return None
    return parameters


def gguf_generation_config(metadata: Metadata) -> dict[str, Any]:
    """Sampling defaults, and every id that ends a generation (end of sequence, of turn, of message)."""
    config: dict[str, Any] = {}
    for key, name in GENERATION_KEYS.items():
        value = metadata.maybe_number(key)
        if value is not None:
            config[name] = int(value) if name == "top_k" else value
    roles = ("eos", "eot", "eom")
    ids = [metadata.maybe_size(f"tokenizer.ggml.{role}_token_id") for role in roles]
    unique = list(dict.fromkeys(token_id for token_id in ids if token_id is not None))
    if unique:
        config["eos_token_id"] = unique
    return config
