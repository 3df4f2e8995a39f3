"""One token per row of logits: temperature, top-k, top-p and min-p filters, then Gumbel-max with counter-based noise.

A filter keeps the logits at or above a threshold. The thresholds are found exactly, without sorting, by bisection on
the
order-preserving integer keys of the logits: count(key >= t) for top-k, mass(key > t) for top-p; three pivots per pass
over the row settle two bits. A program owns a row, so a token depends on its own row, seed, choice and position alone.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import LOG2E, log, order_key, uniform

BLOCK = 4096
NO_TOKEN: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def load_scaled(row_ptr, first, vocab, temperature, BLOCK: tl.constexpr):
    """logits / temperature of BLOCK tokens in float32, no -0.0; -inf past the vocabulary."""
    c = first + tl.arange(0, BLOCK)
    x = tl.load(row_ptr + c, mask=c < vocab, other=float("-inf")).to(tl.float32)
    return tl.div_rn(x, tl.zeros([BLOCK], tl.float32) + temperature) + 0.0


@triton.jit
def best_of(scores, first, best, token, BLOCK: tl.constexpr):
    """The larger of (best, token) and the block's maximum; equal scores go to the lowest index."""
    top = tl.max(scores, 0)
    index = tl.min(tl.where(scores == top, first + tl.arange(0, BLOCK), NO_TOKEN), 0)
    return tl.where(top > best, top, best), tl.where(top > best, index, token)


@triton.jit
def extremes(row_ptr, vocab, temperature, BLOCK: tl.constexpr):
    """(largest, smallest) scaled logit of the row."""
    high = tl.full([], float("-inf"), tl.float32)
    low = tl.full([], float("inf"), tl.float32)
    for first in range(0, vocab, BLOCK):
        x = load_scaled(row_ptr, first, vocab, temperature, BLOCK)
        inside = first + tl.arange(0, BLOCK) < vocab
        high = tl.maximum(high, tl.max(x, 0))
        low = tl.minimum(low, tl.min(tl.where(inside, x, float("inf")), 0))
    return high, low


@triton.jit
def weigh(x, keys, pivot, base, FROM_MASS: tl.constexpr):
    """Per block: how many keys are >= pivot, or the mass of the keys > pivot (softmax numerators against `base`)."""
    if FROM_MASS:
        return tl.sum(tl.where(keys > pivot, tl.exp2((x - base) * LOG2E), 0.0), 0)
    else:
        return tl.sum((keys >= pivot).to(tl.float32), 0)


@triton.jit
def settle(row_ptr, vocab, temperature, low, high, floor, base, target, FROM_MASS: tl.constexpr, BLOCK: tl.constexpr):
    """The two ends of (low, high], int64 keys, drawn together until they are neighbours; holds at low, not at high.

    The condition is count(key >= t) >= target, or mass(floor <= key, key > t) >= target. float32 counts are exact to
    2^24.
    """
    while high - low > 1:
        step = tl.maximum((high - low) // 4, 1)
        p1 = low + step
        p2 = tl.minimum(low + 2 * step, high)
        p3 = tl.minimum(low + 3 * step, high)
        n1 = tl.full([], 0.0, tl.float32)
        n2 = tl.full([], 0.0, tl.float32)
        n3 = tl.full([], 0.0, tl.float32)
        for first in range(0, vocab, BLOCK):
            x = load_scaled(row_ptr, first, vocab, temperature, BLOCK)
            inside = first + tl.arange(0, BLOCK) < vocab
            keys = order_key(x).to(tl.int64)
            keys = tl.where(inside & (keys >= floor), keys, -4294967296)
            n1 += weigh(x, keys, p1, base, FROM_MASS)
            n2 += weigh(x, keys, p2, base, FROM_MASS)
            n3 += weigh(x, keys, p3, base, FROM_MASS)
        low, high = (
            tl.where(n3 >= target, p3, tl.where(n2 >= target, p2, tl.where(n1 >= target, p1, low))),
            tl.where(n1 < target, p1, tl.where(n2 < target, p2, tl.where(n3 < target, p3, high))),
        )
    return low, high


@triton.jit
def mass_from(row_ptr, vocab, temperature, floor, base, BLOCK: tl.constexpr):
    total = tl.full([], 0.0, tl.float32)
    for first in range(0, vocab, BLOCK):
        x = load_scaled(row_ptr, first, vocab, temperature, BLOCK)
        total += tl.sum(tl.where(order_key(x).to(tl.int64) >= floor, tl.exp2((x - base) * LOG2E), 0.0), 0)
    return total


@triton.jit
def threshold(row_ptr, vocab, temperature, top_k, top_p, min_p, BLOCK: tl.constexpr):
    """The smallest kept key: top-k, then top-p of what top-k kept, then min-p. Ties stay or go together."""
    high, low = extremes(row_ptr, vocab, temperature, BLOCK)
    top = order_key(high).to(tl.int64)
    floor = order_key(low).to(tl.int64)
    if (top_k > 0) & (top_k < vocab):
        floor, _ = settle(row_ptr, vocab, temperature, floor, top + 1, floor, high, top_k.to(tl.float32), False, BLOCK)
    if top_p < 1.0:
        target = mass_from(row_ptr, vocab, temperature, floor, high, BLOCK) * top_p
        _, floor = settle(row_ptr, vocab, temperature, floor - 1, top, floor, high, target, True, BLOCK)
    if min_p > 0.0:
        least = high + log(tl.maximum(min_p, 1.1754943508222875e-38))
        floor = tl.maximum(floor, order_key(least).to(tl.int64))
    return tl.minimum(floor, top)


@triton.jit
def sample_row(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, choices_ptr, positions_ptr, out_ptr,
    vocab, row_stride, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows,)."""
    row = tl.program_id(0)
    row_ptr = logits_ptr + row.to(tl.int64) * row_stride
    temperature = tl.load(temperature_ptr + row)
    best = tl.full([], float("-inf"), tl.float32)
    token = tl.full([], NO_TOKEN, tl.int32)
    if temperature > 0.0:
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        seed = tl.load(seeds_ptr + row)
        choice = tl.load(choices_ptr + row)
        position = tl.load(positions_ptr + row)
        floor = tl.full([], -4294967296, tl.int64)
        if ((top_k > 0) & (top_k < vocab)) | (top_p < 1.0) | (min_p > 0.0):
            floor = threshold(row_ptr, vocab, temperature, top_k, top_p, min_p, BLOCK)
        for first in range(0, vocab, BLOCK):
            x = load_scaled(row_ptr, first, vocab, temperature, BLOCK)
            noise = -log(-log(uniform(seed, choice, position, first, BLOCK)))
            kept = order_key(x).to(tl.int64) >= floor
            best, token = best_of(tl.where(kept, x + noise, float("-inf")), first, best, token, BLOCK)
    else:
        for first in range(0, vocab, BLOCK):
            x = load_scaled(row_ptr, first, vocab, 1.0, BLOCK)
            best, token = best_of(x, first, best, token, BLOCK)
    tl.store(out_ptr + row, tl.where(token == NO_TOKEN, 0, token).to(tl.int64))


def launch(
    out: torch.Tensor,
    logits: torch.Tensor,
    temperature: torch.Tensor,
    filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    counters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """out [S] int64 for logits [S,V]; temperature [S]; filters top_k, top_p, min_p and counters seeds, choices,
    positions [S] as `ops.SamplingBatch` defines them. A row of -inf alone gives token 0."""
    rows, vocab = logits.shape
    sample_row[(rows,)](
        logits, temperature, *filters, *counters, out, vocab, logits.stride(0), BLOCK=BLOCK, num_warps=8
    )
