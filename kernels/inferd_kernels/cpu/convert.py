"""The messages of `inferd_kernels.ops` as the native library's structs. A struct holds pointers, not references: the
tensors behind it must live as long as it is used."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from inferd_kernels.cpu import library
from inferd_kernels.operands import ExpertWeights
from inferd_kernels.weights import BackendWeight

if TYPE_CHECKING:
    from inferd_kernels.operands import Attention, AttentionShape, KVCache, PagedBatch, QkNorm, Rope

CACHE_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
MAX_HEAD_DIM = 1024
LANES = 16  # of a vector, csrc/layout.h


@dataclass(frozen=True, slots=True)
class PackedWeight(BackendWeight):
    """An [N, K] matrix in the native layout (csrc/layout.h), made once by `prepare_weight`.

    blocks  the packed bytes, uint8
    format  "f32", "bf16" or ggml's name in lower case
    shape   (N, K)
    native  the struct that points at `blocks`
    """

    blocks: torch.Tensor
    format: str
    shape: tuple[int, int]
    native: library.Weight

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes


@dataclass(frozen=True, slots=True)
class NativeExperts(ExpertWeights):
    """Experts of packed matrices, with their structs in two arrays."""

    gate_up_structs: ctypes.Array[library.Weight]
    down_structs: ctypes.Array[library.Weight]


def native_batch(batch: PagedBatch) -> library.Batch:
    tables = batch.block_tables
    fields = (batch.positions, batch.slots, batch.cu_seqlens, batch.seq_lens, tables)
    assert all(field.is_contiguous() for field in fields), "the tensors of a batch must be contiguous"
    pointers = (field.data_ptr() for field in fields)
    return library.Batch(*pointers, batch.positions.numel(), batch.seq_lens.numel(), tables.shape[1])


def native_attention(attention: Attention) -> library.Attention:
    sinks = attention.sinks
    if sinks is not None and (sinks.dtype != torch.float32 or not sinks.is_contiguous()):
        raise ValueError(f"attention.sinks must be a contiguous float32 tensor, is {sinks.dtype}")
    return library.Attention(
        *(native_cache(attention.cache), native_shape(attention.shape)),
        *(native_rope(attention.rope, attention.qk_norm), None if sinks is None else sinks.data_ptr()),
    )


def native_cache(cache: KVCache) -> library.Cache:
    assert cache.v.is_contiguous(), "values lie row by row"
    in_lanes = keys_in_lanes(cache.k)
    assert in_lanes or cache.k.is_contiguous(), "keys lie row by row or in lanes"
    assert (cache.scales is not None) == (cache.k.dtype == torch.int8), "8-bit caches have scales, others none"
    pointers = [
        None if tensor is None else tensor.data_ptr() for tensor in (cache.k, cache.v, *(cache.scales or (None, None)))
    ]
    return library.Cache(*pointers, cache.k.shape[1], CACHE_TYPES[cache.k.dtype], in_lanes)


def keys_in_lanes(k_cache: torch.Tensor) -> bool:
    """Whether a K cache lies in memory as `NativeOps.key_cache` made it, [blocks, Hk, D, P]."""
    return k_cache.shape[1] % LANES == 0 and k_cache.permute(0, 2, 3, 1).is_contiguous()


def native_shape(shape: AttentionShape) -> library.AttentionShape:
    return library.AttentionShape(
        *(shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.window), shape.scale, shape.softcap
    )


def native_rope(rope: Rope | None, qk_norm: QkNorm | None) -> library.Rope:
    out = library.Rope()
    if rope is not None:
        out.cos_sin, out.rotary_dim = rope.cos_sin.data_ptr(), rope.rotary_dim
    if qk_norm is not None:
        out.q_norm, out.k_norm = qk_norm.q_weight.data_ptr(), qk_norm.k_weight.data_ptr()
        out.norm_eps = qk_norm.eps
    return out
