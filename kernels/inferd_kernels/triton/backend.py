"""The Triton ops: `inferd_kernels.reference.Ops` with every op of a decoder on the GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inferd_kernels import varlen
from inferd_kernels.operands import Routes
from inferd_kernels.reference import Ops
from inferd_kernels.triton import experts, library, linear
from inferd_kernels.triton.tiles import architecture, converts_fp8

if TYPE_CHECKING:
    from collections.abc import Iterable

    from inferd_kernels.operands import Activation, Attention, ExpertWeights, PagedBatch, SamplingBatch
    from inferd_kernels.weights import Weight


class TritonOps(Ops):
    """Kernels for CUDA and ROCm. None waits for the device, so all may be captured in a graph."""

    label = "triton"

    @property
    def cache_dtypes(self) -> tuple[torch.dtype, ...]:
        """NVIDIA converts fp8 e4m3 from compute capability 8.9 on."""
        known = super().cache_dtypes
        return tuple(dtype for dtype in known if dtype != torch.float8_e4m3fn or converts_fp8(architecture()))

    @property
    def quantizations(self) -> tuple[str, ...]:
        """8-bit groups have no kernel here."""
        return ("q4", "fp8") if converts_fp8(architecture()) else ("q4",)

    def prepare_weight(self, weight: Weight, dtype: torch.dtype = torch.bfloat16) -> Weight:
        return linear.prepare_weight(weight, dtype)

    def linear(self, x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
        return linear.linear(x, weight, bias)

    def embedding(self, ids: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
        return linear.embedding(ids, weight, dtype)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x [T,E] with contiguous rows; E up to 65,536."""
        return library.rms_norm(x, weight, eps)

    def add_rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return library.add_rms_norm(x, residual, weight, eps)

    def activate_gated(self, gate_up: torch.Tensor, name: Activation) -> torch.Tensor:
        return library.silu_mul(gate_up) if name == "silu" else super().activate_gated(gate_up, name)

    def route(self, logits: torch.Tensor, top_k: int, renormalize: bool) -> Routes:
        return Routes(*experts.route(logits, top_k, renormalize))

    def prepare_experts(
        self,
        gate_up: Iterable[Weight],
        down: Iterable[Weight],
        activation: Activation,
        biases: tuple[torch.Tensor, torch.Tensor] | None = None,
        dtype: torch.dtype = torch.bfloat16,
    ) -> experts.StackedExperts:
        return experts.stack_experts(gate_up, down, activation, biases, dtype)

    def experts(self, x: torch.Tensor, weights: ExpertWeights, routes: Routes) -> torch.Tensor:
        """An id outside the experts is not noticed: that would wait for the device."""
        assert isinstance(weights, experts.StackedExperts), "experts from prepare_experts"
        stacks = (weights.gate_up_stack, weights.down_stack, weights.gate_up_bias, weights.down_bias)
        return experts.experts(x, routes.ids, routes.weights, *stacks, weights.activation)

    def rope_kv_write(self, qkv: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        cache, rope, norm = attention.cache, attention.rope, attention.qk_norm
        k_scale, v_scale = cache.scales or (None, None)
        return library.rope_kv_write(
            qkv, cache.k, cache.v, k_scale, v_scale, batch.positions, batch.slots, rope and rope.cos_sin,
            norm and norm.q_weight, norm and norm.k_weight, norm.eps if norm else 0.0,
        )  # fmt: skip

    def paged_attention(self, q: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        """Decode rows go to the split kernel, the rest to the prefill kernel.

        batch.max_seq_len bounds seq_lens and sizes the decode grid: under a CUDA graph, the longest context of the
        capture.
        """
        cache, shape = attention.cache, attention.shape
        k_scale, v_scale = cache.scales or (None, None)
        return library.paged_attention(
            q, cache.k, cache.v, k_scale, v_scale, attention.sinks, batch.cu_seqlens, batch.seq_lens,
            batch.block_tables, batch.num_decodes, batch.max_seq_len, shape.scale, shape.window, shape.softcap,
        )  # fmt: skip

    def copy_blocks(self, cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        library.copy_blocks(cache, sources, destinations)

    def penalize(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        tokens: torch.Tensor,
        counts: torch.Tensor,
        repetition: torch.Tensor,
        presence: torch.Tensor,
        frequency: torch.Tensor,
    ) -> None:
        library.penalize(logits, rows, tokens, counts, repetition, presence, frequency)

    def mask_tokens(self, logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
        library.mask_tokens(logits, rows, bits)

    def sample(self, logits: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
        return library.sample(
            logits, batch.temperature, batch.top_k, batch.top_p, batch.min_p, batch.seeds, batch.choices,
            batch.positions, batch.all_greedy,
        )  # fmt: skip


class VarlenOps(TritonOps):
    """The Triton ops with torch's FlashAttention. Raises ValueError when this torch's cannot read a paged cache."""

    label = "varlen"

    def __init__(self) -> None:
        varlen.check_torch()

    @property
    def cache_dtypes(self) -> tuple[torch.dtype, ...]:
        return varlen.CACHE_DTYPES

    def paged_attention(self, q: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
        return varlen.paged_attention(q, attention, batch)
