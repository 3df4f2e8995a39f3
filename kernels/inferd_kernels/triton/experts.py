"""The mixture-of-experts MLP, beside the door: no model here has experts yet."""

from __future__ import annotations

import torch

from inferd_kernels.triton import moe
from inferd_kernels.triton.library import silu_mul
from inferd_kernels.triton.tiles import architecture, gemm_moe_tile


@torch.library.custom_op("inferd::moe_mlp", mutates_args=())
def moe_mlp(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalize: bool = True,
) -> torch.Tensor:
    """x [T,H], router logits [T,E], gate_up [E,2I,H], down [E,H,I] -> [T,H]: the weighted sum over a token's top_k
    experts.

    renormalize: the chosen weights sum to 1. The sum over choices is in float32, in the order of the choices.
    """
    tokens, count = logits.shape
    tile = gemm_moe_tile(architecture(), x.element_size())
    experts = torch.empty(tokens, top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(tokens, top_k, dtype=torch.float32, device=x.device)
    moe.launch_route(experts, weights, logits, renormalize)
    order, owners = moe.launch_align(experts, count, tile.rows)
    hidden = x.new_empty(tokens * top_k, gate_up.shape[1])
    moe.launch_gemm(hidden, x, gate_up, order, owners, None, top_k, tile)
    parts = x.new_empty(tokens * top_k, down.shape[1], dtype=torch.float32)
    moe.launch_gemm(parts, silu_mul(hidden), down, order, owners, weights, 1, tile)
    return parts.view(tokens, top_k, -1).sum(1).to(x.dtype)


@moe_mlp.register_fake
def _(x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
    return torch.empty_like(x)
