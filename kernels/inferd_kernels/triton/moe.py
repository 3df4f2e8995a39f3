"""Mixture of experts: route tokens to their top-k experts, line the pairs up by expert, one grouped GEMM over all.

Pair p = token * top_k + choice. Pairs are listed expert by expert, each expert padded to a multiple of ROWS with
`pairs` (an
index past the end). Order within an expert is the order of the pairs: nothing is atomic, so nothing depends on timing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import LOG2E
from inferd_kernels.triton.tiles import GemmTile, next_power_of_2

BLOCK = 1024


@triton.jit
def route(
    logits_ptr, experts_ptr, weights_ptr, experts, TOP_K: tl.constexpr, PAD: tl.constexpr, RENORMALIZE: tl.constexpr
):  # fmt: skip
    """Grid (tokens,): softmax over the experts, then TOP_K times the largest one left; ties go to the lowest index."""
    token = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, PAD)
    logits = tl.load(logits_ptr + token * experts + e, mask=e < experts, other=float("-inf")).to(tl.float32)
    mass = tl.exp2((logits - tl.max(logits, 0)) * LOG2E)
    total = tl.sum(mass, 0)
    chosen = tl.zeros([PAD], tl.float32)
    left = logits
    for _ in tl.static_range(TOP_K):
        best = tl.min(tl.where(left == tl.max(left, 0), e, PAD), 0)
        chosen = tl.where(e == best, mass, chosen)
        left = tl.where(e == best, float("-inf"), left)
    if RENORMALIZE:
        total = tl.sum(chosen, 0)
    left = logits
    for choice in tl.static_range(TOP_K):
        best = tl.min(tl.where(left == tl.max(left, 0), e, PAD), 0)
        tl.store(experts_ptr + token * TOP_K + choice, best)
        tl.store(weights_ptr + token * TOP_K + choice, tl.sum(tl.where(e == best, chosen, 0.0), 0) / total)
        left = tl.where(e == best, float("-inf"), left)


@triton.jit(do_not_specialize=["pairs"])
def count_pairs(experts_ptr, counts_ptr, pairs, BLOCK: tl.constexpr):
    """Grid (experts,): how many pairs go to each."""
    expert = tl.program_id(0)
    total = tl.zeros([BLOCK], tl.int32)
    for first in range(0, pairs, BLOCK):
        p = first + tl.arange(0, BLOCK)
        total += (tl.load(experts_ptr + p, mask=p < pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(total, 0))


@triton.jit(do_not_specialize=["pairs", "slots"])
def line_up(
    experts_ptr, counts_ptr, order_ptr, owners_ptr, pairs, experts, slots,
    ROWS: tl.constexpr, PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (experts,): each expert's pairs, its padding, and the owner of its tiles; the last also ends the list."""
    expert = tl.program_id(0)
    e = tl.arange(0, PAD)
    counts = tl.load(counts_ptr + e, mask=e < experts, other=0)
    tiles = (counts + ROWS - 1) // ROWS
    start = tl.sum(tl.where(e < expert, tiles, 0), 0)
    mine = tl.sum(tl.where(e == expert, tiles, 0), 0)
    place = start * ROWS
    for first in range(0, pairs, BLOCK):
        p = first + tl.arange(0, BLOCK)
        match = tl.load(experts_ptr + p, mask=p < pairs, other=-1) == expert
        rank = tl.cumsum(match.to(tl.int32), 0)
        tl.store(order_ptr + place + rank - 1, p, mask=match)
        place += tl.sum(match.to(tl.int32), 0)
    end = (start + mine) * ROWS
    r = tl.arange(0, ROWS)
    tl.store(order_ptr + place + r, tl.zeros([ROWS], tl.int32) + pairs, mask=place + r < end)
    if expert == experts - 1:
        end = slots
    for tile in range(start, end // ROWS):
        tl.store(owners_ptr + tile, tl.where(tile < start + mine, expert, -1))


@triton.jit(do_not_specialize=["pairs"])
def gemm_moe(
    x_ptr, w_ptr, bias_ptr, order_ptr, owners_ptr, weights_ptr, out_ptr, pairs, columns, depth, x_stride,
    SHARE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr,
    BIASED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of pairs, columns / COLUMNS): out[pair] = x[pair // SHARE] w[expert]^T (+ bias) (* weight[pair])."""
    tile = tl.program_id(0)
    expert = tl.load(owners_ptr + tile).to(tl.int64)
    if expert < 0:
        return
    pair = tl.load(order_ptr + tile * ROWS + tl.arange(0, ROWS))
    live = pair < pairs
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    x_row = x_ptr + (pair // SHARE).to(tl.int64)[:, None] * x_stride
    w_row = w_ptr + (expert * columns + n)[:, None] * depth
    acc = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, depth, DEPTH):
        at = start + k
        if EVEN:
            w = tl.load(w_row + at[None, :], mask=(n < columns)[:, None], other=0.0)
            x = tl.load(x_row + at[None, :], mask=live[:, None], other=0.0)
        else:
            w = tl.load(w_row + at[None, :], mask=(n < columns)[:, None] & (at < depth)[None, :], other=0.0)
            x = tl.load(x_row + at[None, :], mask=live[:, None] & (at < depth)[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    if BIASED:
        acc += tl.load(bias_ptr + expert * columns + n, mask=n < columns, other=0.0).to(tl.float32)[:, None]
    if WEIGHTED:
        acc = acc * tl.load(weights_ptr + pair, mask=live, other=0.0)[None, :]
    where = out_ptr + pair.to(tl.int64)[None, :] * columns + n[:, None]
    tl.store(where, acc.to(out_ptr.dtype.element_ty), mask=(n < columns)[:, None] & live[None, :])


def launch_route(experts: torch.Tensor, weights: torch.Tensor, logits: torch.Tensor, renormalize: bool) -> None:
    """experts [T,k] int32 and weights [T,k] float32, largest first, for router logits [T,E]."""
    tokens, count = logits.shape
    route[(tokens,)](
        logits, experts, weights, count, TOP_K=experts.shape[1], PAD=next_power_of_2(count), RENORMALIZE=renormalize,
        num_warps=1,
    )  # fmt: skip


def launch_align(experts: torch.Tensor, count: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(order [slots] int32, owners [slots / rows] int32) for experts [T,k] among `count`: which pair sits in each
    slot, and
    whose tile it is; owner -1 is an empty tile. slots bounds any routing, so that it is the same for every batch."""
    pairs = experts.numel()
    slots = (pairs // rows + min(count, pairs)) * rows
    counts = experts.new_empty(count)
    order, owners = experts.new_empty(slots), experts.new_empty(slots // rows)
    count_pairs[(count,)](experts, counts, pairs, BLOCK=BLOCK, num_warps=4)
    line_up[(count,)](
        experts,
        counts,
        order,
        owners,
        pairs,
        count,
        slots,
        ROWS=rows,
        PAD=next_power_of_2(count),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return order, owners


def launch_gemm(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    order: torch.Tensor,
    owners: torch.Tensor,
    weights: torch.Tensor | None,
    share: int,
    tile: GemmTile,
) -> None:
    """out [pairs,N]: row p is x[p // share] weight[expert of p]^T, plus its bias, times weights[p], where given;
    weight [n,N,K], bias [n,N]."""
    columns, depth = weight.shape[1:]
    gemm_moe[(owners.shape[0], -(-columns // tile.columns))](
        x, weight, out if bias is None else bias, order, owners, out if weights is None else weights, out,
        out.shape[0], columns, depth, x.stride(0),
        SHARE=share, ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, EVEN=depth % tile.depth == 0,
        BIASED=bias is not None, WEIGHTED=weights is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
