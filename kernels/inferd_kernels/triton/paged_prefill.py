"""Causal attention of many query tokens per sequence over its paged context.

A program takes ROWS = tokens x GROUP query rows of one KV head, so that tensor cores see 64 or 128 rows and K, V are
read once per group. Key tiles start at multiples of TILE of the sequence, and a tile that a row may not see changes
none of its bits: a prompt gives the same result in one piece or in chunks.
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


@triton.jit
def find_sequence(starts_ptr, sequences, work, TOKENS: tl.constexpr):
    """(sequence, first token within it) of the `work`-th group of TOKENS query tokens, by bisection.

    Sequence i owns work items from (starts[i] - starts[0]) // TOKENS + i on; the last of them may be empty.
    """
    origin = tl.load(starts_ptr)
    low = 0
    high = sequences
    while high - low > 1:
        middle = (low + high) // 2
        begin = (tl.load(starts_ptr + middle) - origin) // TOKENS + middle
        low = tl.where(begin <= work, middle, low)
        high = tl.where(begin <= work, high, middle)
    return low, (work - ((tl.load(starts_ptr + low) - origin) // TOKENS + low)) * TOKENS


@triton.jit(
    do_not_specialize=["sequences", "table_stride"],
    do_not_specialize_on_alignment=["tables_ptr", "starts_ptr", "lens_ptr"],
)
def prefill(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, sinks_ptr, tables_ptr, starts_ptr, lens_ptr, out_ptr,
    scale, softcap, window, sequences, table_stride, block_stride, token_stride, kv_heads,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr,
    PAGE: tl.constexpr, TILE: tl.constexpr, QUANTIZED: tl.constexpr, PTX: tl.constexpr, CAPPED: tl.constexpr,
    WINDOWED: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Grid (kv heads, tokens // TOKENS + sequences); of every head the last, heaviest tiles start first."""
    kv_head = tl.program_id(0)
    work = tl.num_programs(1) - 1 - tl.program_id(1)
    sequence, q_first = find_sequence(starts_ptr, sequences, work, TOKENS)
    start = tl.load(starts_ptr + sequence)
    count = tl.load(starts_ptr + sequence + 1) - start
    if q_first >= count:
        return
    length = tl.load(lens_ptr + sequence)
    r = tl.arange(0, ROWS)
    token = q_first + r // GROUP
    mine = (token < count) & (r < TOKENS * GROUP)
    heads = kv_head * GROUP + r % GROUP
    rows = ((start + token).to(tl.int64) * kv_heads * GROUP + heads) * HEAD_DIM
    q = compute_type(load_rows(q_ptr, rows, mine, HEAD_DIM, DIM_PAD, True), QUANTIZED)
    q_pos = length - count + token
    first = length - count + q_first  # position of the first query token; last is one past the last one's
    last = tl.minimum(first + TOKENS, length)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = empty_sum(ROWS, DIM_PAD, QUANTIZED)
    begin = 0
    if WINDOWED:
        begin = tl.maximum(first - window + 1, 0) // TILE
    else:
        begin = (first + 1) // TILE
        for tile in range(begin):
            pos = tile * TILE + tl.arange(0, TILE)
            m, total, acc = attend_tile(
                q, m, total, acc, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr + sequence * table_stride,
                pos, pos >= 0,
                pos[None, :] >= 0, kv_head, kv_heads, block_stride, token_stride, scale, softcap,
                HEAD_DIM, DIM_PAD, PAGE, QUANTIZED, PTX, CAPPED, False,
            )  # fmt: skip
    for tile in range(begin, (last + TILE - 1) // TILE):
        pos = tile * TILE + tl.arange(0, TILE)
        live = pos < last
        visible = pos[None, :] <= q_pos[:, None]
        if WINDOWED:
            live = live & (pos > first - window)  # blocks before the window may hold anything
            visible = visible & (pos[None, :] > q_pos[:, None] - window)
        m, total, acc = attend_tile(
            q, m, total, acc, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr + sequence * table_stride, pos, live,
            visible & live[None, :], kv_head, kv_heads, block_stride, token_stride, scale, softcap,
            HEAD_DIM, DIM_PAD, PAGE, QUANTIZED, PTX, CAPPED, True,
        )  # fmt: skip
    lse = log_sum(m, total, QUANTIZED)
    out = add_sink(lse, normalize(total, acc, QUANTIZED), sinks_ptr, heads, mine, HAS_SINKS)
    store_rows(out_ptr, rows, out, mine, HEAD_DIM, DIM_PAD)


def launch(
    out: torch.Tensor,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    sinks: torch.Tensor | None,
    tables: torch.Tensor,
    starts: torch.Tensor,
    lens: torch.Tensor,
    *,
    scale: float,
    window: int,
    softcap: float,
    tile: AttentionTile,
) -> None:
    """Fill out [T,Hq,D] rows starts[0]:starts[B] for q [T,Hq,D]; starts [B+1] int32, lens [B] int32 with this step's
    tokens.

    Row r of sequence i is at position lens[i] - (starts[i+1] - starts[i]) + r - starts[i]. Other rows stay as they are.
    """
    tokens, heads, dim = q.shape
    page, kv_heads = k_cache.shape[1:3]
    group = heads // kv_heads
    sequences = lens.shape[0]
    rows = max(tile.rows, next_power_of_2(group))  # a program takes all heads of a token: 71 of a multi-query model
    per_program = rows // group
    none = q.new_empty(0, dtype=torch.float32)
    k_scale, v_scale = scales if scales is not None else (none, none)
    prefill[(kv_heads, tokens // per_program + sequences)](
        q, k_cache, paired(v_cache), k_scale, v_scale, none if sinks is None else sinks, tables, starts, lens, out,
        scale, softcap, window, sequences, tables.stride(0), k_cache.stride(0), k_cache.stride(1), kv_heads,
        GROUP=group, ROWS=rows, TOKENS=per_program, HEAD_DIM=dim, DIM_PAD=padded_head_dim(dim), PAGE=page,
        TILE=tile.tile, QUANTIZED=scales is not None, PTX=targets_ptx(), CAPPED=softcap > 0, WINDOWED=window > 0,
        HAS_SINKS=sinks is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
