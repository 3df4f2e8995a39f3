"""The C ABI of the native library: ctypes mirrors of the structs in csrc/abi.h and csrc/pack.h, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

FORMATS = {
    name: index
    for index, name in enumerate(("f32", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k"))
}
ACTIVATIONS = {
    name: index for index, name in enumerate(("silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped_swiglu"))
}


class Weight(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("format", c_int32), ("n", c_int32), ("k", c_int32))


class PackArgs(ctypes.Structure):
    _fields_ = (
        *(("source", c_void_p), ("packed", c_void_p), ("row_bytes", c_int64)),
        *(("format", c_int32), ("n", c_int32), ("k", c_int32)),
    )


class LinearArgs(ctypes.Structure):
    _fields_ = (
        *(("x", c_void_p), ("weight", POINTER(Weight)), ("bias", c_void_p)),
        *(("y", c_void_p), ("rows", c_int64)),
    )


class EmbeddingArgs(ctypes.Structure):
    _fields_ = (("ids", c_void_p), ("weight", POINTER(Weight)), ("out", c_void_p), ("rows", c_int64))


class NormArgs(ctypes.Structure):
    _fields_ = (
        *(("x", c_void_p), ("residual", c_void_p), ("weight", c_void_p), ("normed", c_void_p), ("hidden", c_void_p)),
        *(("rows", c_int64), ("width", c_int32), ("eps", c_float)),
    )


class ActivateArgs(ctypes.Structure):
    _fields_ = (
        *(("x", c_void_p), ("out", c_void_p), ("rows", c_int64)),
        *(("width", c_int32), ("activation", c_int32), ("gated", c_int32)),
    )


class ExpertsArgs(ctypes.Structure):
    _fields_ = (
        *(("x", c_void_p), ("ids", c_void_p), ("weights", c_void_p), ("gate_up", c_void_p), ("down", c_void_p)),
        *(("gate_up_bias", c_void_p), ("down_bias", c_void_p), ("y", c_void_p), ("tokens", c_int64)),
        *(("top_k", c_int32), ("num_experts", c_int32), ("width", c_int32), ("intermediate", c_int32)),
        ("activation", c_int32),
    )


class Batch(ctypes.Structure):
    _fields_ = (
        *(("positions", c_void_p), ("slots", c_void_p), ("cu_seqlens", c_void_p), ("seq_lens", c_void_p)),
        *(("block_tables", c_void_p), ("tokens", c_int64), ("sequences", c_int64), ("max_blocks", c_int64)),
    )


class Cache(ctypes.Structure):
    _fields_ = (
        *(("k", c_void_p), ("v", c_void_p), ("k_scales", c_void_p), ("v_scales", c_void_p)),
        *(("page", c_int32), ("type", c_int32), ("keys_in_lanes", c_int32)),
    )


class AttentionShape(ctypes.Structure):
    _fields_ = (
        *(("heads", c_int32), ("kv_heads", c_int32), ("head_dim", c_int32), ("window", c_int32)),
        *(("scale", c_float), ("softcap", c_float)),
    )


class Rope(ctypes.Structure):
    _fields_ = (
        *(("cos_sin", c_void_p), ("q_norm", c_void_p), ("k_norm", c_void_p)),
        *(("rotary_dim", c_int32), ("norm_eps", c_float)),
    )


class Attention(ctypes.Structure):
    _fields_ = (("cache", Cache), ("shape", AttentionShape), ("rope", Rope), ("sinks", c_void_p))


class RopeKvArgs(ctypes.Structure):
    _fields_ = (("attention", Attention), ("qkv", c_void_p), ("q", c_void_p), ("batch", POINTER(Batch)))


class AttentionArgs(ctypes.Structure):
    _fields_ = (("attention", Attention), ("q", c_void_p), ("out", c_void_p), ("batch", POINTER(Batch)))


class SampleArgs(ctypes.Structure):
    _fields_ = (
        *(("logits", c_void_p), ("ids", c_void_p), ("temperature", c_void_p), ("top_k", c_void_p)),
        *(("top_p", c_void_p), ("min_p", c_void_p), ("seeds", c_void_p), ("choices", c_void_p)),
        *(("positions", c_void_p), ("rows", c_int64), ("vocab", c_int64)),
    )


class CopyArgs(ctypes.Structure):
    _fields_ = (
        *(("cache", c_void_p), ("sources", c_void_p), ("destinations", c_void_p)),
        *(("pairs", c_int64), ("blocks", c_int64), ("block_bytes", c_int64)),
    )


class Linear(ctypes.Structure):
    _fields_ = (("parts", Weight * 3), ("num_parts", c_int32), ("n", c_int32), ("bias", c_void_p))


class Layer(ctypes.Structure):
    _fields_ = (
        *(("qkv", Linear), ("o", Linear), ("gate_up", Linear), ("down", Linear)),
        *(("attention_norm", c_void_p), ("mlp_norm", c_void_p), ("attention", Attention)),
    )


class StackArgs(ctypes.Structure):
    _fields_ = (
        *(("hidden", c_void_p), ("layers", c_void_p), ("batch", POINTER(Batch))),
        *(("num_layers", c_int32), ("width", c_int32), ("intermediate", c_int32), ("eps", c_float)),
    )


class LimitsArgs(ctypes.Structure):
    _fields_ = (("memory", c_void_p), ("out", c_void_p), ("amount", c_int64), ("kind", c_int32))


OPS = {
    "linear": LinearArgs,
    "embedding": EmbeddingArgs,
    "norm": NormArgs,
    "activate": ActivateArgs,
    "experts": ExpertsArgs,
    "rope_kv": RopeKvArgs,
    "attention": AttentionArgs,
    "sample": SampleArgs,
    "copy_blocks": CopyArgs,
    "stack": StackArgs,
    "limits": LimitsArgs,
}


def open_library(path: Path) -> ctypes.CDLL:
    """Load the library and declare its functions. Raises OSError when it cannot be loaded."""
    library = ctypes.CDLL(str(path))
    library.inferd_create.argtypes, library.inferd_create.restype = (c_char_p, c_int), c_void_p
    library.inferd_destroy.argtypes, library.inferd_destroy.restype = (c_void_p,), None
    library.inferd_isa.argtypes, library.inferd_isa.restype = (c_void_p,), c_char_p
    library.inferd_packed_bytes.argtypes = (c_int32, c_int64, c_int64)
    library.inferd_packed_bytes.restype = c_size_t
    library.inferd_pack.argtypes, library.inferd_pack.restype = (c_void_p, POINTER(PackArgs)), c_int
    library.inferd_attention_bytes.argtypes = (c_void_p, POINTER(AttentionShape))
    library.inferd_attention_bytes.restype = c_int64
    library.inferd_scratch_bytes.argtypes, library.inferd_scratch_bytes.restype = (c_void_p,), c_size_t
    library.inferd_release.argtypes, library.inferd_release.restype = (c_void_p,), None
    for name, args in OPS.items():
        function = getattr(library, f"inferd_{name}")
        function.argtypes, function.restype = (c_void_p, POINTER(args)), c_int
    return library
