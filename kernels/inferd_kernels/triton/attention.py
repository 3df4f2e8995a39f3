"""The step both attention kernels repeat: one tile of keys and values against the rows of one KV head.

Online softmax (Milakov & Gimelshein 2018; FlashAttention, Dao et al. 2022) in base 2, state in float32:
m' = max(m, max s), l' = l 2^(m - m') + sum 2^(s - m'), acc' = acc 2^(m - m') + 2^(s - m') V.
"""

from __future__ import annotations

import triton
import triton.language as tl

from inferd_kernels.triton.device import LOG2E, tanh
from inferd_kernels.triton.eight_bit import widen, widen_pairs

# Over a quantized cache weights are kept times 2^8, so that weight * value scale (max|v| / 448 or / 127) stays out of
# fp16's subnormals. The sum of the weights is kept times 2^8 as well, so the quotient needs no correction.
WEIGHT_SHIFT: tl.constexpr = tl.constexpr(8.0)


@triton.jit
def load_rows(ptr, offsets, live, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, MASKED: tl.constexpr):
    """[rows, DIM_PAD] values at offsets [rows] + 0..HEAD_DIM-1; rows that are not live, and padding, are 0."""
    d = tl.arange(0, DIM_PAD)
    where = ptr + offsets[:, None] + d[None, :]
    if HEAD_DIM == DIM_PAD:
        if MASKED:
            rows = tl.load(where, mask=live[:, None], other=0.0)
        else:
            rows = tl.load(where)
    else:
        if MASKED:
            rows = tl.load(where, mask=live[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
        else:
            rows = tl.load(where, mask=(d < HEAD_DIM)[None, :], other=0.0)
    return rows


@triton.jit
def store_rows(ptr, offsets, rows, live, HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr):
    """The inverse of load_rows, for live rows."""
    d = tl.arange(0, DIM_PAD)
    mask = live[:, None] & (d < HEAD_DIM)[None, :]
    tl.store(ptr + offsets[:, None] + d[None, :], rows.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def compute_type(q, QUANTIZED: tl.constexpr):
    """float16 over a quantized cache: 8-bit to fp16 is one instruction per pair, to bf16 it is several."""
    if QUANTIZED and q.dtype != tl.float32:
        return q.to(tl.float16)
    else:
        return q


@triton.jit
def empty_sum(ROWS: tl.constexpr, DIM_PAD: tl.constexpr, QUANTIZED: tl.constexpr):
    """The accumulator of attend_tile: [ROWS, DIM_PAD], or over a quantized cache its even and its odd columns."""
    if QUANTIZED:
        return tl.zeros([ROWS, DIM_PAD // 2], tl.float32), tl.zeros([ROWS, DIM_PAD // 2], tl.float32)
    else:
        return tl.zeros([ROWS, DIM_PAD], tl.float32)


@triton.jit
def attend_tile(
    q, m, total, acc, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, tables_ptr, pos, live, visible, kv_head, kv_heads,
    block_stride, token_stride, scale, softcap,
    HEAD_DIM: tl.constexpr, DIM_PAD: tl.constexpr, PAGE: tl.constexpr,
    QUANTIZED: tl.constexpr, PTX: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """One tile at absolute positions `pos` [TILE] of the sequence whose block table starts at tables_ptr.

    v_ptr points at 16-bit words of two values when the cache is quantized.
    live [TILE]: the slot holds a token (others may hold anything, NaN included). visible [rows, TILE]: may look.
    Without MASKED both are all true and unused. The order of operations is the same with and without MASKED, so a row
    gets the same bits wherever its tile boundary falls.
    """
    pos = pos.to(tl.uint32)  # never negative: // and % are a shift and a mask
    if MASKED:
        block = tl.load(tables_ptr + pos // PAGE, mask=live, other=0).to(tl.int64)
    else:
        block = tl.load(tables_ptr + pos // PAGE).to(tl.int64)
    offsets = block * block_stride + (pos % PAGE) * token_stride + kv_head * HEAD_DIM
    k = load_rows(k_ptr, offsets, live, HEAD_DIM, DIM_PAD, MASKED)
    if QUANTIZED:
        k = widen(k, q.dtype, PTX)
        v_pairs = load_rows(v_ptr, offsets // 2, live, HEAD_DIM // 2, DIM_PAD // 2, MASKED)
    else:
        k = k.to(q.dtype)
        v = load_rows(v_ptr, offsets, live, HEAD_DIM, DIM_PAD, MASKED).to(q.dtype)
    s = tl.dot(q, tl.trans(k), input_precision="ieee")
    if QUANTIZED:
        scale_at = (block * PAGE + pos % PAGE) * kv_heads + kv_head
        if MASKED:
            k_scale = tl.load(k_scale_ptr + scale_at, mask=live, other=0.0)
            v_scale = tl.load(v_scale_ptr + scale_at, mask=live, other=0.0)
        else:
            k_scale = tl.load(k_scale_ptr + scale_at)
            v_scale = tl.load(v_scale_ptr + scale_at)
        s = s * k_scale[None, :]
    if CAPPED:
        s = tanh(s * (scale / softcap)) * softcap
        factor = LOG2E
    else:
        factor = scale * LOG2E
    if MASKED:
        s = tl.where(visible, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * factor)
    base = tl.where(m_new == float("-inf"), 0.0, m_new)
    if QUANTIZED:
        p = tl.exp2(s * factor - (base - WEIGHT_SHIFT)[:, None])
    else:
        p = tl.exp2(s * factor - base[:, None])
    shrink = tl.exp2(m - base)
    total = total * shrink + tl.sum(p, 1)
    if QUANTIZED:
        p = (p * v_scale[None, :]).to(q.dtype)
        v_even, v_odd = widen_pairs(v_pairs, k_ptr.dtype.element_ty, q.dtype, PTX)
        even = tl.dot(p, v_even, acc[0] * shrink[:, None], input_precision="ieee")
        odd = tl.dot(p, v_odd, acc[1] * shrink[:, None], input_precision="ieee")
        return m_new, total, (even, odd)
    else:
        acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
        return m_new, total, acc


@triton.jit
def normalize(total, acc, QUANTIZED: tl.constexpr):
    """acc / l; rows without a visible key give 0."""
    if QUANTIZED:
        acc = tl.reshape(tl.join(acc[0], acc[1]), [acc[0].shape[0], 2 * acc[0].shape[1]])
    return acc / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def log_sum(m, total, QUANTIZED: tl.constexpr):
    """log2 of the softmax denominator; -inf for rows without a visible key."""
    lse = m + tl.log2(tl.where(total > 0, total, 1.0))
    if QUANTIZED:
        lse -= WEIGHT_SHIFT
    return lse


@triton.jit
def add_sink(lse, out, sinks_ptr, heads, live, HAS_SINKS: tl.constexpr):
    """With sinks, the head's sink logit joins the softmax denominator (Xiao et al. 2023; gpt-oss)."""
    if HAS_SINKS:
        sink = tl.load(sinks_ptr + heads, mask=live, other=0.0).to(tl.float32) * LOG2E
        top = tl.maximum(lse, sink)
        weight = tl.exp2(lse - top)
        out = out * (weight / (weight + tl.exp2(sink - top)))[:, None]
    return out
