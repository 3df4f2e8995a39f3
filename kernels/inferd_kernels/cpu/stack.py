"""A run of decoder layers in one native call: Python does nothing per layer."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from inferd_kernels.cpu import library
from inferd_kernels.cpu.convert import (
    MAX_HEAD_DIM,
    PackedWeight,
    native_batch,
    native_cache,
    native_rope,
    native_shape,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inferd_kernels.cpu.engine import NativeEngine
    from inferd_kernels.ops import DecoderLayer, PagedBatch


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
        self._width, self._intermediate = down.n, down.k

    def __call__(self, hidden: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """hidden [T,E] float32, the embeddings -> [T,E], the residual stream after the last layer (before the final
        norm). Writes K and V of every layer at batch.slots."""
        if hidden.dtype != torch.float32 or hidden.shape[-1] != self._width:
            raise ValueError(f"hidden must be float32 of width {self._width}, is {hidden.dtype} {tuple(hidden.shape)}")
        out = hidden.clone(memory_format=torch.contiguous_format)
        args = library.StackArgs(
            *(out.data_ptr(), ctypes.addressof(self._structs), ctypes.pointer(native_batch(batch))),
            *(len(self._layers), self._width, self._intermediate, self._eps),
        )
        self._engine.call("stack", args)
        return out


def _native_layer(layer: DecoderLayer) -> library.Layer:
    matrices = {name: getattr(layer, name) for name in ("qkv", "o", "gate_up", "down")}
    for name, matrix in matrices.items():
        if not isinstance(matrix, PackedWeight):
            raise ValueError(f"layer.{name} is not a weight of the native backend's prepare_weight")
    for name in ("attention_norm", "mlp_norm", "qkv_bias", "o_bias"):
        _check_vector(name, getattr(layer, name))
    if layer.qk_norm is not None:
        _check_vector("qk_norm.q_weight", layer.qk_norm.q_weight)
        _check_vector("qk_norm.k_weight", layer.qk_norm.k_weight)
    shape = layer.shape
    if shape.head_dim > MAX_HEAD_DIM:
        raise ValueError(f"layer.shape.head_dim {shape.head_dim} is above {MAX_HEAD_DIM}")
    expected = {
        "qkv": ((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim, layer.down.shape[0]),
        "o": (layer.down.shape[0], shape.num_heads * shape.head_dim),
        "gate_up": (2 * layer.down.shape[1], layer.down.shape[0]),
    }
    for name, size in expected.items():
        if matrices[name].shape != size:
            raise ValueError(f"layer.{name} is {matrices[name].shape}, not {size}")
    out = library.Layer(*(matrix.native for matrix in matrices.values()))
    for name in ("attention_norm", "mlp_norm", "qkv_bias", "o_bias"):
        vector = getattr(layer, name)
        setattr(out, name, None if vector is None else vector.data_ptr())
    out.cache = native_cache(layer.k_cache, layer.v_cache)
    out.shape = native_shape(shape)
    out.rope = native_rope(layer.rope, layer.qk_norm)
    return out


def _check_vector(name: str, vector: torch.Tensor | None) -> None:
    if vector is not None and (vector.dtype != torch.float32 or not vector.is_contiguous()):
        raise ValueError(f"layer.{name} must be a contiguous float32 tensor, is {vector.dtype}")
