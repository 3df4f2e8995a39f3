"""The Triton implementation of every op of the door. Signatures and results are those of `inferd_kernels.reference`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inferd_kernels.triton import library
from inferd_kernels.triton.linear import embedding, linear, prepare_weight
from inferd_kernels.triton.tiles import architecture, converts_fp8

if TYPE_CHECKING:
    from inferd_kernels.ops import AttentionShape, PagedBatch, QkNorm, Rope, SamplingBatch

__all__ = [
    "add_rms_norm",
    "copy_blocks",
    "embedding",
    "linear",
    "mask_tokens",
    "paged_attention",
    "penalize",
    "prepare_weight",
    "rms_norm",
    "rope_kv_write",
    "sample",
    "silu_mul",
]


def cache_dtypes() -> tuple[torch.dtype, ...]:
    """Of KV caches that the kernels read on this device; NVIDIA converts fp8 e4m3 from compute capability 8.9 on."""
    known = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8)
    return tuple(dtype for dtype in known if dtype != torch.float8_e4m3fn or converts_fp8(architecture()))


def quantizations() -> tuple[str, ...]:
    """Of weights that the kernels multiply with; 8-bit groups have no kernel here."""
    return ("q4", "fp8") if converts_fp8(architecture()) else ("q4",)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x [T,E] with contiguous rows; E up to 65,536."""
    return library.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return library.add_rms_norm(x, residual, weight, eps)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    return library.silu_mul(gate_up)


def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    library.copy_blocks(cache, sources, destinations)


def rope_kv_write(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    rope: Rope | None,
    shape: AttentionShape,
    qk_norm: QkNorm | None = None,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """With kv_scales [blocks,P,Hk] float32 the caches are fp8 e4m3 or int8, quantized per token and KV head."""
    k_scale, v_scale = kv_scales or (None, None)
    return library.rope_kv_write(
        qkv, k_cache, v_cache, k_scale, v_scale, batch.positions, batch.slots,
        rope and rope.cos_sin, qk_norm and qk_norm.q_weight, qk_norm and qk_norm.k_weight,
        qk_norm.eps if qk_norm else 0.0,
    )  # fmt: skip


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    shape: AttentionShape,
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode rows go to the split kernel, the rest to the prefill kernel.

    batch.max_seq_len bounds seq_lens and sizes the decode grid: under a CUDA graph, the longest context of the capture.
    """
    k_scale, v_scale = kv_scales or (None, None)
    return library.paged_attention(
        q, k_cache, v_cache, k_scale, v_scale, sinks, batch.cu_seqlens, batch.seq_lens, batch.block_tables,
        batch.num_decodes, batch.max_seq_len, shape.scale, shape.window, shape.softcap,
    )  # fmt: skip


def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    library.penalize(logits, rows, tokens, counts, repetition, presence, frequency)


def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    library.mask_tokens(logits, rows, bits)


def sample(logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    return library.sample(
        logits, batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seeds, batch.choices, batch.positions,
        batch.all_greedy,
    )  # fmt: skip
