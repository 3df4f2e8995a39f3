"""Attention of one query token per sequence over its paged context: split kernel and merge kernel.

o = softmax(scale q K^T) V over the positions p - window < j <= p, p = seq_len - 1. The context is cut into splits of a
number of tokens that follows from its length (flash-decoding, Dao et al. 2023, where the count follows from the batch),
so a row's arithmetic depends on its own length alone: the same bits in any batch, under any bound on the context.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.attention import (
    add_sink,
    attend_tile,
    compute_type,
    empty_sum,
    load_rows,
    log_sum,
    normalize,
    store_rows,
)
from inferd_kernels.triton.eight_bit import paired
from inferd_kernels.triton.tiles import AttentionTile, next_power_of_2, padded_head_dim, targets_ptx

MERGE_SPLITS: tl.constexpr = tl.constexpr(16)


@triton.jit
def split_size(length, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, TILE: tl.constexpr):
    """Tokens per split: SPLIT, or as many whole tiles as keep a long row within MAX_SPLITS."""
    even = (length + (MAX_SPLITS * TILE - 1)) // (MAX_SPLITS * TILE)
    return tl.maximum(even, SPLIT // TILE) * TILE


@triton.jit(do_not_specialize=["splits", "table_stride"], do_not_specialize_on_alignment=["tables_ptr", "lens_ptr"])
def decode_split(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, sinks_ptr, tables_ptr, lens_ptr, partial_ptr, lse_ptr, out_ptr,
    scale, softcap, window, table_stride, block_stride, token_stride, kv_heads, splits,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE: tl.constexpr,
    TILE: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, SINGLE: tl.constexpr, QUANTIZED: tl.constexpr,
    PTX: tl.constexpr, CAPPED: tl.constexpr, WINDOWED: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, kv heads, splits): one split of one sequence for the GROUP query heads of one KV head."""
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(lens_ptr + row)
    first = 0
    if WINDOWED:
        first = tl.maximum(length - window, 0)
    size = split_size(length, SPLIT, MAX_SPLITS, TILE)
    low = tl.maximum(split * size, first)
    high = tl.minimum(split * size + size, length)
    if not SINGLE:
        if low >= high:
            return
    g = tl.arange(0, GROUP_PAD)
    mine = g < GROUP
    heads = kv_head * GROUP + g
    rows = row.to(tl.int64) * kv_heads * GROUP + heads
    q = compute_type(load_rows(q_ptr, rows * HEAD_DIM, mine, HEAD_DIM, DIM_PAD, True), QUANTIZED)
    m = tl.full([GROUP_PAD], float("-inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = empty_sum(GROUP_PAD, DIM_PAD, QUANTIZED)
    begin = low // TILE
    if not WINDOWED:
        for tile in range(begin, high // TILE):
            pos = tile * TILE + tl.arange(0, TILE)
            m, total, acc = attend_tile(
                q, m, total, acc, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr + row * table_stride,
                pos, pos >= 0,
                pos[None, :] >= 0, kv_head, kv_heads, block_stride, token_stride, scale, softcap,
                HEAD_DIM, DIM_PAD, PAGE, QUANTIZED, PTX, CAPPED, False,
            )  # fmt: skip
        begin = tl.maximum(begin, high // TILE)
    for tile in range(begin, (high + TILE - 1) // TILE):
        pos = tile * TILE + tl.arange(0, TILE)
        live = (pos < high) & (pos >= low)
        m, total, acc = attend_tile(
            q, m, total, acc, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr + row * table_stride, pos, live,
            live[None, :], kv_head, kv_heads, block_stride, token_stride, scale, softcap,
            HEAD_DIM, DIM_PAD, PAGE, QUANTIZED, PTX, CAPPED, True,
        )  # fmt: skip
    out = normalize(total, acc, QUANTIZED)
    lse = log_sum(m, total, QUANTIZED)
    if SINGLE:
        out = add_sink(lse, out, sinks_ptr, heads, mine, HAS_SINKS)
        store_rows(out_ptr, rows * HEAD_DIM, out, mine, HEAD_DIM, DIM_PAD)
    else:
        slots = rows * splits + split
        store_rows(partial_ptr, slots * HEAD_DIM, out, mine, HEAD_DIM, DIM_PAD)
        tl.store(lse_ptr + slots, lse, mask=mine)


@triton.jit(do_not_specialize=["splits"], do_not_specialize_on_alignment=["lens_ptr"])
def decode_merge(
    partial_ptr, lse_ptr, sinks_ptr, lens_ptr, out_ptr, window, heads, splits,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, TILE: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
    WINDOWED: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (sequences, heads): the weighted sum of a row's splits, in their order, 16 at a time."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    length = tl.load(lens_ptr + row)
    first = 0
    if WINDOWED:
        first = tl.maximum(length - window, 0)
    size = split_size(length, SPLIT, MAX_SPLITS, TILE)
    begin = first // size
    end = (length + size - 1) // size
    at = row.to(tl.int64) * heads + head
    one = tl.arange(0, 1)
    m = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, DIM_PAD], tl.float32)
    for chunk in range(begin // MERGE_SPLITS, (end + MERGE_SPLITS - 1) // MERGE_SPLITS):
        split = chunk * MERGE_SPLITS + tl.arange(0, MERGE_SPLITS)
        live = (split >= begin) & (split < end)
        lse = tl.load(lse_ptr + at * splits + split, mask=live, other=float("-inf"))
        part = load_rows(partial_ptr, (at * splits + split) * HEAD_DIM, live, HEAD_DIM, DIM_PAD, True)
        m_new = tl.maximum(m, tl.max(lse, 0))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        weight = tl.exp2(lse - base)
        shrink = tl.exp2(m - base)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink[:, None] + tl.sum(part * weight[:, None], 0)[None, :]
        m = m_new
    out = add_sink(log_sum(m, total, False), normalize(total, acc, False), sinks_ptr, head + one, one < 1, HAS_SINKS)
    store_rows(out_ptr, (at + one) * HEAD_DIM, out, one < 1, HEAD_DIM, DIM_PAD)


def launch(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    sinks: torch.Tensor | None,
    tables: torch.Tensor,
    lens: torch.Tensor,
    *,
    scale: float,
    window: int,
    softcap: float,
    max_seq_len: int,
    tile: AttentionTile,
) -> None:
    """out [B,Hq,D] for q [B,Hq,D], one query token per sequence at position lens - 1; lens 0 gives zeros.

    k_cache, v_cache [blocks, P, Hk, D]; scales [blocks, P, Hk] float32 each when the caches hold fp8 or int8;
    sinks [Hq]; tables [B, max_blocks] int32; lens [B] int32, none above max_seq_len, which alone sizes the grid.
    """
    rows, heads, dim = q.shape
    page, kv_heads = k_cache.shape[1:3]
    splits = min(max(1, -(-max_seq_len // tile.split)), tile.max_splits)
    single = splits == 1
    partial = q.new_empty(0 if single else rows * heads * splits * dim, dtype=torch.float32)
    lse = q.new_empty(0 if single else rows * heads * splits, dtype=torch.float32)
    k_scale, v_scale = scales if scales is not None else (lse, lse)
    shared = {
        "HEAD_DIM": dim,
        "DIM_PAD": padded_head_dim(dim),
        "TILE": tile.tile,
        "SPLIT": tile.split,
        "MAX_SPLITS": tile.max_splits,
        "WINDOWED": window > 0,
        "HAS_SINKS": sinks is not None,
    }
    sinks = lse if sinks is None else sinks
    decode_split[(rows, kv_heads, splits)](
        q, k_cache, paired(v_cache), k_scale, v_scale, sinks, tables, lens, partial, lse, out,
        scale, softcap, window, tables.stride(0), k_cache.stride(0), k_cache.stride(1), kv_heads, splits,
        GROUP=heads // kv_heads, GROUP_PAD=max(16, next_power_of_2(heads // kv_heads)), PAGE=page,
        SINGLE=single, QUANTIZED=scales is not None, PTX=targets_ptx(), CAPPED=softcap > 0,
        num_warps=tile.num_warps, num_stages=tile.num_stages, **shared,
    )  # fmt: skip
    if not single:
        decode_merge[(rows, heads)](partial, lse, sinks, lens, out, window, heads, splits, num_warps=4, **shared)
