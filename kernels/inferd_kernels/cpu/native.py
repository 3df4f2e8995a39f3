"""The native CPU ops: `inferd_kernels.reference.Ops` with its hot methods in C++.

Activations are float32; other dtypes are computed in float32 and converted back. Quantized weights are multiplied
with activations rounded to int8 in groups of 32 (integer dot products); float weights in float32. Every row is
computed from its own values in one fixed order, so it does not depend on the batch it is in or on the thread count.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from inferd_kernels.cpu import library
from inferd_kernels.cpu.convert import (
    CACHE_TYPES,
    LANES,
    MAX_HEAD_DIM,
    NativeExperts,
    PackedWeight,
    keys_in_lanes,
    native_attention,
    native_batch,
)
from inferd_kernels.cpu.stack import NativeStack
from inferd_kernels.reference import Ops, dequantize
from inferd_kernels.weights import BackendWeight, Fp8Weight, QuantizedWeight, WeightRows

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inferd_kernels.cpu.engine import NativeEngine
    from inferd_kernels.operands import (
        Activation,
        Attention,
        DecoderLayer,
        ExpertWeights,
        PagedBatch,
        Routes,
        SamplingBatch,
        Stack,
    )
    from inferd_kernels.weights import CheckpointWeight, Weight

PANEL_ROWS = LANES  # rows are packed together in such panels


class NativeOps(Ops):
    """The ops of one engine."""

    has_threads = True
    packs_blocks = True

    def __init__(self, engine: NativeEngine) -> None:
        self.engine = engine
        self.label = f"native-{engine.isa}"

    @property
    def cache_dtypes(self) -> tuple[torch.dtype, ...]:
        return tuple(CACHE_TYPES)

    @property
    def quantizations(self) -> tuple[str, ...]:
        return ("q4", "q8")

    def decoder_stack(self, layers: Sequence[DecoderLayer], eps: float) -> Stack | None:
        """All `layers` as one call (stack.py); None for layers of unlike sizes.

        Raises ValueError for a layer whose tensors are not what its fields ask for.
        """
        shapes = [layer.attention.shape for layer in layers]
        sizes = {(shape.num_heads, shape.num_kv_heads, shape.head_dim) for shape in shapes}
        widths = {(part.shape[0], part.shape[1]) for layer in layers for part in layer.down}
        return NativeStack(self.engine, layers, eps) if len(sizes) == len(widths) == 1 else None

    def release(self) -> None:
        self.engine.release()

    def attention_bytes(self, heads: int, kv_heads: int, head_dim: int) -> int:
        return self.engine.attention_bytes(library.AttentionShape(heads, kv_heads, head_dim))

    def key_cache(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """K cache of `shape` [blocks, P, Hk, D]; in memory [blocks, Hk, D, P] where pages are whole vectors: attention
        then loads a value of 16 keys at once, which else it would have to transpose."""
        blocks, page, heads, dim = shape
        if dtype not in CACHE_TYPES or page % LANES:
            return torch.empty(shape, dtype=dtype, device=device)
        return torch.empty((blocks, heads, dim, page), dtype=dtype, device=device).permute(0, 3, 1, 2)

    def prepare_weight(self, weight: Weight, dtype: torch.dtype = torch.float32) -> PackedWeight | torch.Tensor:
        """Repack a matrix. Quantized blocks keep their bits (formats without a kernel become float32); float matrices
        are packed as `dtype` says: bfloat16 in two bytes, anything else in float32. Vectors pass unchanged."""
        if isinstance(weight, PackedWeight) or (isinstance(weight, torch.Tensor) and weight.dim() != 2):
            return weight
        if isinstance(weight, BackendWeight):
            raise ValueError(f"{type(weight).__name__} is the weight of another backend")
        return self.pack_rows(WeightRows((weight.shape[0], weight.shape[1]), [weight]), dtype)

    def pack_rows(self, rows: WeightRows, dtype: torch.dtype = torch.float32) -> PackedWeight:
        """prepare_weight of a matrix in blocks: each is packed as it comes."""
        packed: PackedWeight | None = None
        pending, done = torch.empty(0), 0  # rows that fill no panel yet; rows that are packed
        for block in rows.blocks:
            source, kind = _packable(block, dtype)
            if packed is None:
                packed = self._unfilled(kind, rows.shape)
            assert kind == packed.format, f"a block of {kind} among those of {packed.format}"
            source = torch.cat((pending, source)) if len(pending) else source
            is_last = done + len(source) == rows.shape[0]
            ready = len(source) if is_last else len(source) // PANEL_ROWS * PANEL_ROWS
            if ready:
                self.engine.pack(source[:ready], kind, (ready, rows.shape[1]), packed.blocks, done)
            pending, done = source[ready:].clone(), done + ready
        assert packed is not None, "a matrix has rows"
        assert done == rows.shape[0], f"{done} of {rows.shape[0]} rows came"
        return packed

    def _unfilled(self, kind: str, shape: tuple[int, int]) -> PackedWeight:
        data = self.engine.reserve(kind, shape)
        return PackedWeight(data, kind, shape, library.Weight(data.data_ptr(), library.FORMATS[kind], *shape))

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        if not isinstance(weight, PackedWeight):
            return super().linear(x, weight, bias)
        rows, width = weight.shape
        if x.shape[-1] != width:
            raise ValueError(f"x has {x.shape[-1]} columns, the weight {width}")
        values = _floats(x)
        out = torch.empty((*x.shape[:-1], rows), dtype=torch.float32)
        shift = None if bias is None else _floats(bias)
        count = values.numel() // width
        args = library.LinearArgs(
            values.data_ptr(), ctypes.pointer(weight.native), _pointer(shift), out.data_ptr(), count
        )
        self.engine.call("linear", args)
        return out.to(x.dtype)

    def embedding(self, ids: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        if not isinstance(weight, PackedWeight):
            return super().embedding(ids, weight, dtype)
        ids = ids.to(torch.int64).contiguous()
        out = torch.empty((ids.numel(), weight.shape[1]), dtype=torch.float32)
        args = library.EmbeddingArgs(ids.data_ptr(), ctypes.pointer(weight.native), out.data_ptr(), ids.numel())
        self.engine.call("embedding", args)
        return out.to(dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if x.dtype != torch.float32:
            return super().rms_norm(x, weight, eps)
        x, weight = x.contiguous(), _floats(weight)
        out = torch.empty_like(x)
        width = x.shape[-1]
        args = library.NormArgs(
            x.data_ptr(), None, weight.data_ptr(), out.data_ptr(), None, x.numel() // width, width, eps
        )
        self.engine.call("norm", args)
        return out

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if x.dtype != torch.float32:
            return super().add_rms_norm(x, residual, weight, eps)
        x, residual, weight = x.contiguous(), _floats(residual), _floats(weight)
        out, hidden = torch.empty_like(x), torch.empty_like(x)
        width = x.shape[-1]
        pointers = (x.data_ptr(), residual.data_ptr(), weight.data_ptr(), out.data_ptr(), hidden.data_ptr())
        self.engine.call("norm", library.NormArgs(*pointers, x.numel() // width, width, eps))
        return out, hidden

    def activate(self, x: torch.Tensor, name: Activation) -> torch.Tensor:
        if x.dtype != torch.float32 or name in ("gelu", "clamped_swiglu"):  # torch's error function is faster
            return super().activate(x, name)
        return self._activated(x, name, gated=False)

    def activate_gated(self, gate_up: torch.Tensor, name: Activation) -> torch.Tensor:
        if gate_up.dtype != torch.float32 or name == "gelu":
            return super().activate_gated(gate_up, name)
        return self._activated(gate_up, name, gated=True)

    def _activated(self, x: torch.Tensor, name: Activation, *, gated: bool) -> torch.Tensor:
        x = x.contiguous()
        width = x.shape[-1] // (2 if gated else 1)
        out = torch.empty((*x.shape[:-1], width), dtype=torch.float32)
        sizes = (out.numel() // max(width, 1), width, library.ACTIVATIONS[name], gated)
        self.engine.call("activate", library.ActivateArgs(x.data_ptr(), out.data_ptr(), *sizes))
        return out

    def prepare_experts(
        self,
        gate_up: Iterable[Weight],
        down: Iterable[Weight],
        activation: Activation,
        biases: tuple[torch.Tensor, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> NativeExperts:
        if biases is not None:
            biases = _floats(biases[0]), _floats(biases[1])
        prepared = super().prepare_experts(gate_up, down, activation, biases, dtype)
        structs = []
        for part in (prepared.gate_up, prepared.down):
            packed = [weight for weight in part if isinstance(weight, PackedWeight)]
            assert len(packed) == len(part), "the matrices of experts have two dimensions"
            structs.append((library.Weight * len(packed))(*(weight.native for weight in packed)))
        fields = (prepared.gate_up, prepared.down, prepared.gate_up_bias, prepared.down_bias, activation)
        return NativeExperts(*fields, *structs)

    def experts(self, x: torch.Tensor, weights: ExpertWeights, routes: Routes) -> torch.Tensor:
        assert isinstance(weights, NativeExperts), "experts from prepare_experts"
        width, intermediate = weights.down[0].shape
        values, shares, ids = _floats(x), _floats(routes.weights), routes.ids.to(torch.int32).contiguous()
        if values.shape[-1] != width:
            raise ValueError(f"x has {values.shape[-1]} columns, the experts {width}")
        out = torch.empty_like(values)
        args = library.ExpertsArgs(
            *(values.data_ptr(), ids.data_ptr(), shares.data_ptr()),
            *(ctypes.addressof(weights.gate_up_structs), ctypes.addressof(weights.down_structs)),
            *(_pointer(weights.gate_up_bias), _pointer(weights.down_bias), out.data_ptr(), values.shape[0]),
            *(ids.shape[1], len(weights.down), width, intermediate, library.ACTIVATIONS[weights.activation]),
        )
        self.engine.call("experts", args)
        return out.to(x.dtype)

    def rope_kv_write(self, qkv: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        if qkv.dtype != torch.float32 or not _native_cache(attention):
            return super().rope_kv_write(qkv, attention, batch)
        qkv, shape = qkv.contiguous(), attention.shape
        q = torch.empty((qkv.shape[0], shape.num_heads, shape.head_dim), dtype=torch.float32)
        operands = (native_attention(attention), qkv.data_ptr(), q.data_ptr(), ctypes.pointer(native_batch(batch)))
        self.engine.call("rope_kv", library.RopeKvArgs(*operands))
        return q

    def paged_attention(self, q: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        if q.dtype != torch.float32 or not _native_cache(attention):
            return super().paged_attention(q, attention, batch)
        q = q.contiguous()
        out = torch.empty_like(q)
        operands = (native_attention(attention), q.data_ptr(), out.data_ptr(), ctypes.pointer(native_batch(batch)))
        self.engine.call("attention", library.AttentionArgs(*operands))
        return out

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        rows, vocab = logits.shape
        values = _floats(logits)
        ids = torch.empty(rows, dtype=torch.int64)
        settings = (
            batch.temperature,
            batch.top_k,
            batch.top_p,
            batch.min_p,
            batch.seeds,
            batch.choices,
            batch.positions,
        )
        columns = [setting.contiguous() for setting in settings]
        pointers = (values.data_ptr(), ids.data_ptr(), *(column.data_ptr() for column in columns))
        self.engine.call("sample", library.SampleArgs(*pointers, rows, vocab))
        return ids

    def copy_blocks(self, cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        if not (cache.is_contiguous() or keys_in_lanes(cache)):
            return super().copy_blocks(cache, sources, destinations)
        sources, destinations = sources.to(torch.int64).contiguous(), destinations.to(torch.int64).contiguous()
        block_bytes = cache.stride(0) * cache.element_size()
        pointers = (cache.data_ptr(), sources.data_ptr(), destinations.data_ptr())
        self.engine.call("copy_blocks", library.CopyArgs(*pointers, sources.numel(), cache.shape[0], block_bytes))


def _native_cache(attention: Attention) -> bool:
    k, v = attention.cache.k, attention.cache.v
    known = k.dtype in CACHE_TYPES and v.dtype == k.dtype and attention.shape.head_dim <= MAX_HEAD_DIM
    return known and (k.is_contiguous() or keys_in_lanes(k)) and v.is_contiguous()


def _packable(weight: CheckpointWeight | Fp8Weight, dtype: torch.dtype) -> tuple[torch.Tensor, str]:
    """Rows as csrc/pack.h takes them, and their format there. Raises ValueError for fp8."""
    if isinstance(weight, Fp8Weight):
        raise ValueError("the native kernels take no fp8 weights")
    if isinstance(weight, QuantizedWeight):
        if weight.format in library.FORMATS:
            return weight.blocks, weight.format
        weight = dequantize(weight)
    if dtype == torch.bfloat16 or weight.dtype == torch.bfloat16:
        return weight.to(torch.bfloat16), "bf16"
    return weight.to(torch.float32), "f32"


def _floats(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32).contiguous()


def _pointer(x: torch.Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
