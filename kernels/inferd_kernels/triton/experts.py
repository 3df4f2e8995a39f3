"""Experts as torch ops: the route of each token, and the weighted sum over its experts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from inferd_kernels.operands import Activation, ExpertWeights
from inferd_kernels.reference import Ops, dequantize, dequantize_fp8
from inferd_kernels.triton import activation, moe
from inferd_kernels.triton.linear import W4Weight
from inferd_kernels.triton.tiles import architecture, gemm_moe_tile
from inferd_kernels.weights import Fp8Weight, QuantizedWeight, Weight

TORCH = Ops()


@dataclass(frozen=True, slots=True)
class StackedExperts(ExpertWeights):
    """gate_up and down are the experts of two stacks, [n, 2I, E] and [n, E, I]."""

    gate_up_stack: torch.Tensor
    down_stack: torch.Tensor


def stack_experts(
    gate_up: Iterable[Weight],
    down: Iterable[Weight],
    activation: Activation,
    biases: tuple[torch.Tensor, torch.Tensor] | None,
    dtype: torch.dtype,
) -> StackedExperts:
    """One float matrix per side: the grouped matmul has no quantized form, so other formats become `dtype`."""
    first, second = (torch.stack([_dense(weight, dtype) for weight in part]) for part in (gate_up, down))
    assert len(first) == len(second), f"{len(first)} experts have gate_up, {len(second)} down"
    first_bias, second_bias = biases or (None, None)
    views = first.unbind(), second.unbind()
    return StackedExperts(*views, first_bias, second_bias, activation, first, second)


def _dense(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    if isinstance(weight, torch.Tensor):
        return weight
    if isinstance(weight, QuantizedWeight):
        return dequantize(weight, dtype)
    if isinstance(weight, Fp8Weight):
        return dequantize_fp8(weight, dtype)
    assert isinstance(weight, W4Weight), "a weight of this backend"
    return weight.values(dtype)


@torch.library.custom_op("inferd::route", mutates_args=())
def route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids [T,k] int32, weights [T,k] float32) for router logits [T,n]."""
    ids = torch.empty(logits.shape[0], top_k, dtype=torch.int32, device=logits.device)
    weights = torch.empty(logits.shape[0], top_k, dtype=torch.float32, device=logits.device)
    moe.launch_route(ids, weights, logits, renormalize)
    return ids, weights


@route.register_fake
def _(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    ids = logits.new_empty(logits.shape[0], top_k, dtype=torch.int32)
    return ids, logits.new_empty(logits.shape[0], top_k, dtype=torch.float32)


@torch.library.custom_op("inferd::experts", mutates_args=())
def experts(
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    gate_up_bias: torch.Tensor | None,
    down_bias: torch.Tensor | None,
    name: str,
) -> torch.Tensor:
    """x [T,E], ids and weights [T,k], gate_up [n,2I,E], down [n,E,I] -> [T,E]. The sum over choices is in float32, in
    their order."""
    tokens, top_k = ids.shape
    tile = gemm_moe_tile(architecture(), x.element_size())
    order, owners = moe.launch_align(ids, gate_up.shape[0], tile.rows)
    hidden = x.new_empty(tokens * top_k, gate_up.shape[1])
    moe.launch_gemm(hidden, x, gate_up, gate_up_bias, order, owners, None, top_k, tile)
    parts = x.new_empty(tokens * top_k, down.shape[1], dtype=torch.float32)
    moe.launch_gemm(parts, _activated(hidden, name), down, down_bias, order, owners, weights, 1, tile)
    return parts.view(tokens, top_k, -1).sum(1).to(x.dtype)


@experts.register_fake
def _(x: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(x)


def _activated(hidden: torch.Tensor, name: str) -> torch.Tensor:
    if name != "silu":
        return TORCH.activate_gated(hidden, name)  # type: ignore[arg-type]  # a custom op takes plain strings
    out = hidden.new_empty(hidden.shape[0], hidden.shape[1] // 2)
    activation.launch(out, hidden)
    return out
