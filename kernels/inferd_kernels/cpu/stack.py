"""A run of decoder layers in one native call: Python does nothing per layer."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from inferd_kernels.cpu import library
from inferd_kernels.cpu.convert import (
    CACHE_TYPES,
    MAX_HEAD_DIM,
    PackedWeight,
    native_attention,
    native_batch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferd_kernels.cpu.engine import NativeEngine
    from inferd_kernels.operands import DecoderLayer, PagedBatch

MAX_PARTS = 3  # csrc/abi.h, struct Linear


class NativeStack:
    """The layers as native structs, built once. Holds on to every tensor that the structs point at.

    Raises ValueError naming the field when a layer is not one that the native code runs.
    """

    def __init__(self, engine: NativeEngine, layers: Sequence[DecoderLayer], eps: float) -> None:
        self._engine = engine
        self._layers = tuple(layers)
        self._eps = eps
        self._structs = (library.Layer * len(self._layers))(*(_native_layer(layer) for layer in self._layers))
        down = self._structs[0].down
        self._width, self._intermediate = down.n, down.parts[0].k

    def __call__(self, hidden: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """hidden [T,E] float32, the embeddings, becomes the residual stream after the last layer (before the final
        norm), and is returned. Writes K and V of every layer at batch.slots."""
        if hidden.dtype != torch.float32 or hidden.shape[-1] != self._width:
            raise ValueError(f"hidden must be float32 of width {self._width}, is {hidden.dtype} {tuple(hidden.shape)}")
        out = hidden.contiguous()
        args = library.StackArgs(
            *(out.data_ptr(), ctypes.addressof(self._structs), ctypes.pointer(native_batch(batch))),
            *(len(self._layers), self._width, self._intermediate, self._eps),
        )
        self._engine.call("stack", args)
        return out


def _native_layer(layer: DecoderLayer) -> library.Layer:
    shape, cache, qk_norm = layer.attention.shape, layer.attention.cache, layer.attention.qk_norm
    if shape.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"layer.attention.shape.head_dim {shape.head_dim} is above {MAX_HEAD_DIM}")
    if cache.k.dtype not in CACHE_TYPES:
        raise ValueError(f"layer.attention.cache.k is {cache.k.dtype}, not float32, bfloat16, float16 or int8")
    width, query = layer.attention_norm.numel(), shape.num_heads * shape.head_dim
    intermediate = sum(part.shape[0] for part in layer.gate_up) // 2
    out = library.Layer(
        qkv=_linear("qkv", layer.qkv, (query + 2 * shape.num_kv_heads * shape.head_dim, width), layer.qkv_bias),
        o=_linear("o", layer.o, (width, query), layer.o_bias),
        gate_up=_linear("gate_up", layer.gate_up, (2 * intermediate, width), None),
        down=_linear("down", layer.down, (width, intermediate), None),
        attention_norm=_vector("attention_norm", layer.attention_norm),
        mlp_norm=_vector("mlp_norm", layer.mlp_norm),
        attention=native_attention(layer.attention),
    )
    if qk_norm is not None:
        _vector("attention.qk_norm.q_weight", qk_norm.q_weight)
        _vector("attention.qk_norm.k_weight", qk_norm.k_weight)
    return out


def _linear(name: str, parts: Sequence[object], shape: tuple[int, int], bias: torch.Tensor | None) -> library.Linear:
    packed = [part for part in parts if isinstance(part, PackedWeight)]
    if len(packed) < len(parts):
        raise ValueError(f"layer.{name} is not a weight of the native backend's prepare_weight")
    rows, widths = sum(part.shape[0] for part in packed), {part.shape[1] for part in packed}
    if not 1 <= len(packed) <= MAX_PARTS or rows != shape[0] or widths != {shape[1]}:
        raise ValueError(f"layer.{name} is {[part.shape for part in packed]}, not 1 to {MAX_PARTS} parts of {shape}")
    natives = (library.Weight * MAX_PARTS)(*(part.native for part in packed))
    return library.Linear(natives, len(packed), rows, _vector(f"{name}_bias", bias))


def _vector(name: str, vector: torch.Tensor | None) -> int | None:
    """Address of a float32 vector."""
    if vector is None:
        return None
    if vector.dtype != torch.float32 or not vector.is_contiguous():
        raise ValueError(f"layer.{name} must be a contiguous float32 tensor, is {vector.dtype}")
    return int(vector.data_ptr())
