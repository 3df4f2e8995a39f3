"""RoPE and the KV write in one pass over qkv, with Qwen3's q/k norm and 8-bit quantization of the cache on the way.

Rotation in the half-split form (Su et al. 2021): first' = first cos - second sin, second' = second cos + first sin
over the
first ROTARY dimensions of a head; the rest pass. Quantization is per token and KV head: scale = max|x| / limit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import quant_scale, quantize
from inferd_kernels.triton.tiles import next_power_of_2

LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


@triton.jit
def load_part(ptr, offsets, mine, FIRST: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr):
    """[heads, PAD] float32 of dimensions FIRST .. FIRST + SIZE - 1."""
    d = tl.arange(0, PAD)
    where = ptr + offsets[:, None] + FIRST + d[None, :]
    return tl.load(where, mask=mine[:, None] & (d < SIZE)[None, :], other=0.0).to(tl.float32)


@triton.jit
def store_part(ptr, offsets, x, mine, FIRST: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr):
    d = tl.arange(0, PAD)
    mask = mine[:, None] & (d < SIZE)[None, :]
    tl.store(ptr + offsets[:, None] + FIRST + d[None, :], x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def norm_part(x, inverse, weight_ptr, kind, FIRST: tl.constexpr, SIZE: tl.constexpr, PAD: tl.constexpr):
    """x * inverse rounded to storage, times the weight, rounded again: the order Llama checkpoints were trained in."""
    d = tl.arange(0, PAD)
    weight = tl.load(weight_ptr + FIRST + d, mask=d < SIZE, other=0.0).to(tl.float32)
    normed = (x * inverse[:, None]).to(kind).to(tl.float32)
    return (normed * weight[None, :]).to(kind).to(tl.float32)


@triton.jit
def head_rows(
    x_ptr, offsets, mine, weight_ptr, eps, cos, sin,
    HEAD_DIM: tl.constexpr, HALF: tl.constexpr, HALF_PAD: tl.constexpr, REST: tl.constexpr, REST_PAD: tl.constexpr,
    NORMED: tl.constexpr, ROTATED: tl.constexpr,
):  # fmt: skip
    """(first half, second half, rest) of some heads of one token, normed and rotated, rounded to storage."""
    kind = x_ptr.dtype.element_ty
    first = load_part(x_ptr, offsets, mine, 0, HALF, HALF_PAD)
    second = load_part(x_ptr, offsets, mine, HALF, HALF, HALF_PAD)
    rest = first
    if REST > 0:
        rest = load_part(x_ptr, offsets, mine, 2 * HALF, REST, REST_PAD)
    if NORMED:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if REST > 0:
            squares += tl.sum(rest * rest, 1)
        inverse = tl.rsqrt(squares / HEAD_DIM + eps)
        first = norm_part(first, inverse, weight_ptr, kind, 0, HALF, HALF_PAD)
        second = norm_part(second, inverse, weight_ptr, kind, HALF, HALF, HALF_PAD)
        if REST > 0:
            rest = norm_part(rest, inverse, weight_ptr, kind, 2 * HALF, REST, REST_PAD)
    if ROTATED:
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    return first.to(kind).to(tl.float32), second.to(kind).to(tl.float32), rest


@triton.jit
def write_head(
    cache_ptr, scale_ptr, first, second, rest, offset, scale_at, one, kept,
    HALF: tl.constexpr, HALF_PAD: tl.constexpr, REST: tl.constexpr, REST_PAD: tl.constexpr, LIMIT: tl.constexpr,
    INTEGER: tl.constexpr,
):  # fmt: skip
    """One head of one token into its slot; with LIMIT, quantized, and its scale beside it."""
    mine = (one < 1) & kept
    if LIMIT > 0:
        largest = tl.maximum(tl.max(tl.abs(first), 1), tl.max(tl.abs(second), 1))
        if REST > 0:
            largest = tl.maximum(largest, tl.max(tl.abs(rest), 1))
        scale = quant_scale(largest, LIMIT)
        first = quantize(first, scale[:, None], LIMIT, INTEGER)
        second = quantize(second, scale[:, None], LIMIT, INTEGER)
        rest = quantize(rest, scale[:, None], LIMIT, INTEGER)
        tl.store(scale_ptr + scale_at + one, scale, mask=mine)
    offsets = offset + one
    store_part(cache_ptr, offsets, first, mine, 0, HALF, HALF_PAD)
    store_part(cache_ptr, offsets, second, mine, HALF, HALF, HALF_PAD)
    if REST > 0:
        store_part(cache_ptr, offsets, rest, mine, 2 * HALF, REST, REST_PAD)


@triton.jit
def rope_kv(
    qkv_ptr, q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, positions_ptr, slots_ptr, cos_sin_ptr, q_weight_ptr,
    k_weight_ptr, eps, block_stride, token_stride, kv_heads,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, HALF: tl.constexpr,
    HALF_PAD: tl.constexpr, REST: tl.constexpr, REST_PAD: tl.constexpr, NORMED: tl.constexpr, ROTATED: tl.constexpr,
    LIMIT: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    """Grid (tokens, kv heads): one KV head of one token, and the GROUP query heads that share it."""
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    h = tl.arange(0, HALF_PAD)
    cos = tl.zeros([1, HALF_PAD], tl.float32)
    sin = cos
    if ROTATED:
        row = cos_sin_ptr + tl.load(positions_ptr + token) * (2 * HALF)
        cos = tl.load(row + h, mask=h < HALF, other=0.0)[None, :]
        sin = tl.load(row + HALF + h, mask=h < HALF, other=0.0)[None, :]
    heads = kv_heads * GROUP
    row_start = token * (heads + 2 * kv_heads)
    g = tl.arange(0, GROUP_PAD)
    q_head = kv_head * GROUP + g
    first, second, rest = head_rows(
        qkv_ptr, (row_start + q_head) * HEAD_DIM, g < GROUP, q_weight_ptr, eps, cos, sin,
        HEAD_DIM, HALF, HALF_PAD, REST, REST_PAD, NORMED, ROTATED,
    )  # fmt: skip
    q_at = (token * heads + q_head) * HEAD_DIM
    store_part(q_ptr, q_at, first, g < GROUP, 0, HALF, HALF_PAD)
    store_part(q_ptr, q_at, second, g < GROUP, HALF, HALF, HALF_PAD)
    if REST > 0:
        store_part(q_ptr, q_at, rest, g < GROUP, 2 * HALF, REST, REST_PAD)

    slot = tl.load(slots_ptr + token)
    if slot < 0:
        return
    one = tl.arange(0, 1)
    offset = (slot // PAGE) * block_stride + (slot % PAGE) * token_stride + kv_head * HEAD_DIM
    scale_at = slot * kv_heads + kv_head
    k_at = (row_start + heads + kv_head) * HEAD_DIM + one
    first, second, rest = head_rows(
        qkv_ptr, k_at, one < 1, k_weight_ptr, eps, cos, sin,
        HEAD_DIM, HALF, HALF_PAD, REST, REST_PAD, NORMED, ROTATED,
    )  # fmt: skip
    write_head(k_ptr, k_scale_ptr, first, second, rest, offset, scale_at, one, True,
               HALF, HALF_PAD, REST, REST_PAD, LIMIT, INTEGER)  # fmt: skip
    v_at = k_at + kv_heads * HEAD_DIM
    first, second, rest = head_rows(
        qkv_ptr, v_at, one < 1, k_weight_ptr, eps, cos, sin,
        HEAD_DIM, HALF, HALF_PAD, REST, REST_PAD, False, False,
    )  # fmt: skip
    write_head(v_ptr, v_scale_ptr, first, second, rest, offset, scale_at, one, True,
               HALF, HALF_PAD, REST, REST_PAD, LIMIT, INTEGER)  # fmt: skip


def launch(
    q: torch.Tensor,
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor | None,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
) -> None:
    """q [T,Hq,D] from qkv [T,(Hq+2Hk)D], K and V into their caches [blocks,P,Hk,D] at slots [T] int64 (-1: nowhere).

    cos_sin [positions, R] float32 rotates the first R dimensions (None: none); norms are q and k weights [D];
    scales [blocks,P,Hk] float32 are written when the caches hold fp8 e4m3 or int8.
    """
    tokens, heads, dim = q.shape
    page, kv_heads = k_cache.shape[1:3]
    half = (dim if cos_sin is None else cos_sin.shape[1]) // 2
    group = heads // kv_heads
    k_scale, v_scale = scales if scales is not None else (positions, positions)
    q_weight, k_weight = norms if norms is not None else (qkv, qkv)
    rope_kv[(tokens, kv_heads)](
        qkv, q, k_cache, v_cache, k_scale, v_scale, positions, slots, positions if cos_sin is None else cos_sin,
        q_weight, k_weight, eps, k_cache.stride(0), k_cache.stride(1), kv_heads,
        GROUP=group, GROUP_PAD=next_power_of_2(group), HEAD_DIM=dim, PAGE=page, HALF=half,
        HALF_PAD=next_power_of_2(half), REST=dim - 2 * half, REST_PAD=next_power_of_2(max(1, dim - 2 * half)),
        NORMED=norms is not None, ROTATED=cos_sin is not None, LIMIT=0.0 if scales is None else LIMITS[k_cache.dtype],
        INTEGER=k_cache.dtype == torch.int8, num_warps=1 if group * dim <= 1024 else 4,
    )  # fmt: skip
