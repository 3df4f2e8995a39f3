"""One token per row of logits: temperature, top-k, top-p and min-p filters, then Gumbel-max with counter-based noise.

A filter keeps the logits at or above a threshold, found exactly and without sorting by bisection on the order-keeping
integer keys of the logits: count(key >= t) >= k for top-k, mass(key > t) >= p for top-p. A row is cut into chunks, a
program each; a pass tallies 16 pivots per chunk, and the next pass adds the chunks up, in their order, and keeps one
sixteenth of the interval. Eight passes settle 32 bits. Nothing is atomic and a row reads its own data alone, so a token
depends on its row, seed, choice and position, never on timing or neighbours.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import LOG2E, log, order_key, uniform
from inferd_kernels.triton.tiles import next_power_of_2

CHUNK = 4096
PASSES = 8
PIVOTS: tl.constexpr = tl.constexpr(16)
STATE: tl.constexpr = tl.constexpr(4)  # low, high, floor, unused
NO_TOKEN: tl.constexpr = tl.constexpr(2147483647)


@triton.jit
def load_scaled(logits_ptr, row, row_stride, first, vocab, temperature, COUNT: tl.constexpr):
    """logits / temperature of COUNT tokens in float32, no -0.0; -inf past the vocabulary."""
    c = first + tl.arange(0, COUNT)
    x = tl.load(logits_ptr + row.to(tl.int64) * row_stride + c, mask=c < vocab, other=float("-inf")).to(tl.float32)
    return tl.div_rn(x, tl.zeros([COUNT], tl.float32) + temperature) + 0.0


@triton.jit
def filters_by_count(top_k, vocab):
    return (top_k > 0) & (top_k < vocab)


@triton.jit
def extremes(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, extremes_ptr, vocab, row_stride, chunks,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): the largest and smallest scaled logit of each chunk of a row that filters."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    filtered = filters_by_count(tl.load(top_k_ptr + row), vocab) | (tl.load(top_p_ptr + row) < 1.0)
    if (temperature <= 0.0) | ((tl.load(min_p_ptr + row) <= 0.0) & (filtered == 0)):
        return
    x = load_scaled(logits_ptr, row, row_stride, chunk * CHUNK, vocab, temperature, CHUNK)
    inside = chunk * CHUNK + tl.arange(0, CHUNK) < vocab
    at = extremes_ptr + (row * chunks + chunk) * 2
    tl.store(at, tl.max(x, 0))
    tl.store(at + 1, tl.min(tl.where(inside, x, float("inf")), 0))


@triton.jit
def row_extremes(extremes_ptr, row, chunks, PAD: tl.constexpr):
    """(largest, smallest) scaled logit of the row."""
    c = tl.arange(0, PAD)
    at = extremes_ptr + (row * chunks + c) * 2
    high = tl.max(tl.load(at, mask=c < chunks, other=float("-inf")), 0)
    return high, tl.min(tl.load(at + 1, mask=c < chunks, other=float("inf")), 0)


@triton.jit
def sums(tally_ptr, row, chunks, PAD: tl.constexpr):
    """[PIVOTS] tallies of the row."""
    c = tl.arange(0, PAD)
    at = tally_ptr + (row * chunks + c)[:, None] * PIVOTS + tl.arange(0, PIVOTS)[None, :]
    return tl.sum(tl.load(at, mask=(c < chunks)[:, None], other=0.0), 0)


@triton.jit
def narrowed(low, high, totals, target):
    """The sixteenth of [low, high) whose lower end still reaches the target; pivot 0 is low, which always does."""
    step = (high - low + (PIVOTS - 1)) // PIVOTS
    index = tl.maximum(tl.sum((totals >= target).to(tl.int64), 0), 1) - 1
    return tl.minimum(low + index * step, high), tl.minimum(low + (index + 1) * step, high)


@triton.jit
def tally(
    logits_ptr, row, row_stride, chunk, vocab, temperature, low, high, floor, top,
    MASS: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """[PIVOTS] per pivot of [low, high): how many keys are >= it, or the mass of the keys > it and >= floor."""
    step = (high - low + (PIVOTS - 1)) // PIVOTS
    pivots = tl.minimum(low + tl.arange(0, PIVOTS) * step, high).to(tl.int32)
    acc = tl.zeros([PIVOTS, PART], tl.float32)
    for first in range(chunk * CHUNK, chunk * CHUNK + CHUNK, PART):
        x = load_scaled(logits_ptr, row, row_stride, first, vocab, temperature, PART)
        keys = order_key(x)
        live = first + tl.arange(0, PART) < vocab
        if MASS:
            weight = tl.where(live & (keys >= floor), tl.exp2((x - top) * LOG2E), 0.0)
            acc += tl.where(keys[None, :] > pivots[:, None], weight[None, :], 0.0)
        else:
            acc += tl.where((keys[None, :] >= pivots[:, None]) & live[None, :], 1.0, 0.0)
    return tl.sum(acc, 1)


@triton.jit
def narrow_count(
    logits_ptr, temperature_ptr, top_k_ptr, extremes_ptr, state_in, tally_in, state_out, tally_out, vocab, row_stride,
    chunks, FIRST: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): one pass of the bisection for top-k. count(key >= low) >= k > count(key >= high)."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    if (temperature <= 0.0) | (filters_by_count(top_k, vocab) == 0):
        return
    if FIRST:
        most, least = row_extremes(extremes_ptr, row, chunks, PAD)
        low = order_key(least).to(tl.int64)
        high = order_key(most).to(tl.int64) + 1
    else:
        low, high = narrowed(
            tl.load(state_in + row * STATE), tl.load(state_in + row * STATE + 1),
            sums(tally_in, row, chunks, PAD), top_k.to(tl.float32),
        )  # fmt: skip
    if chunk == 0:
        tl.store(state_out + row * STATE, low)
        tl.store(state_out + row * STATE + 1, high)
    found = tally(
        logits_ptr, row, row_stride, chunk, vocab, temperature, low, high, 0, 0.0, False, CHUNK, PART
    )  # fmt: skip
    tl.store(tally_out + (row * chunks + chunk) * PIVOTS + tl.arange(0, PIVOTS), found)


@triton.jit
def count_floor(top_k, vocab, least, state_ptr, tally_ptr, row, chunks, PAD: tl.constexpr):
    """The smallest key that top-k keeps, from the last pass; without top-k the smallest key there is."""
    floor = order_key(least).to(tl.int64)
    if filters_by_count(top_k, vocab):
        floor, _ = narrowed(
            tl.load(state_ptr + row * STATE), tl.load(state_ptr + row * STATE + 1),
            sums(tally_ptr, row, chunks, PAD), top_k.to(tl.float32),
        )  # fmt: skip
    return floor


@triton.jit
def narrow_mass(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, extremes_ptr, state_in, tally_in, mass_in, state_out, tally_out,
    mass_out, vocab, row_stride, chunks,
    PASS: tl.constexpr, CHUNK: tl.constexpr, PART: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): one pass for top-p over what top-k kept. mass(key > low) >= p Z > mass(key > high).

    Pass 0 starts from the last pass of top-k; pass 1 finds Z, the mass above its own first pivot, and hands it on.
    """
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    temperature = tl.load(temperature_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    if (temperature <= 0.0) | (top_p >= 1.0):
        return
    most, least = row_extremes(extremes_ptr, row, chunks, PAD)
    if PASS == 0:
        floor = count_floor(tl.load(top_k_ptr + row), vocab, least, state_in, tally_in, row, chunks, PAD)
        low = floor - 1
        high = order_key(most).to(tl.int64)
    else:
        floor = tl.load(state_in + row * STATE + 2)
        totals = sums(tally_in, row, chunks, PAD)
        if PASS == 1:
            mass = tl.max(totals, 0)
        else:
            mass = tl.load(mass_in + row)
        low, high = narrowed(
            tl.load(state_in + row * STATE), tl.load(state_in + row * STATE + 1), totals, mass * top_p
        )  # fmt: skip
        if chunk == 0:
            tl.store(mass_out + row, mass)
    if chunk == 0:
        tl.store(state_out + row * STATE, low)
        tl.store(state_out + row * STATE + 1, high)
        tl.store(state_out + row * STATE + 2, floor)
    found = tally(
        logits_ptr, row, row_stride, chunk, vocab, temperature, low, high, floor, most, True, CHUNK, PART
    )  # fmt: skip
    tl.store(tally_out + (row * chunks + chunk) * PIVOTS + tl.arange(0, PIVOTS), found)


@triton.jit
def row_floor(
    top_k, top_p, min_p, vocab, extremes_ptr, count_state, count_tally, state_ptr, tally_ptr, mass_ptr, row, chunks,
    PAD: tl.constexpr,
):  # fmt: skip
    """The smallest kept key of a row that filters. Ties stay or go together; the largest always stays."""
    most, least = row_extremes(extremes_ptr, row, chunks, PAD)
    top = order_key(most).to(tl.int64)
    if top_p < 1.0:
        _, floor = narrowed(
            tl.load(state_ptr + row * STATE), tl.load(state_ptr + row * STATE + 1),
            sums(tally_ptr, row, chunks, PAD), tl.load(mass_ptr + row) * top_p,
        )  # fmt: skip
    else:
        floor = count_floor(top_k, vocab, least, count_state, count_tally, row, chunks, PAD)
    if min_p > 0.0:
        relative = most + log(tl.maximum(min_p, 1.1754943508222875e-38))
        floor = tl.maximum(floor, order_key(relative).to(tl.int64))
    return tl.minimum(floor, top)


@triton.jit
def draw(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seeds_ptr, choices_ptr, positions_ptr, extremes_ptr,
    count_state, count_tally, state_ptr, tally_ptr, mass_ptr, scores_ptr, tokens_ptr, vocab, row_stride, chunks,
    GREEDY: tl.constexpr, CHUNK: tl.constexpr, PAD: tl.constexpr,
):  # fmt: skip
    """Grid (rows, chunks): the best perturbed token of each chunk; without temperature the best one."""
    row = tl.program_id(0)
    chunk = tl.program_id(1)
    first = chunk * CHUNK
    temperature = 0.0
    if not GREEDY:
        temperature = tl.load(temperature_ptr + row)
    divisor = tl.where(temperature > 0.0, temperature, 1.0)
    score = load_scaled(logits_ptr, row, row_stride, first, vocab, divisor, CHUNK)
    if not GREEDY:
        if temperature > 0.0:
            top_k = tl.load(top_k_ptr + row)
            top_p = tl.load(top_p_ptr + row)
            min_p = tl.load(min_p_ptr + row)
            keys = order_key(score)
            u = uniform(
                tl.load(seeds_ptr + row), tl.load(choices_ptr + row), tl.load(positions_ptr + row), first, CHUNK
            )  # fmt: skip
            score = score - log(-log(u))
            if filters_by_count(top_k, vocab) | (top_p < 1.0) | (min_p > 0.0):
                floor = row_floor(
                    top_k, top_p, min_p, vocab, extremes_ptr, count_state, count_tally, state_ptr, tally_ptr, mass_ptr,
                    row, chunks, PAD,
                )  # fmt: skip
                score = tl.where(keys >= floor, score, float("-inf"))
    best = tl.max(score, 0)
    token = tl.min(tl.where(score == best, first + tl.arange(0, CHUNK), NO_TOKEN), 0)
    tl.store(scores_ptr + row * chunks + chunk, best)
    tl.store(tokens_ptr + row * chunks + chunk, token)


@triton.jit
def pick(scores_ptr, tokens_ptr, out_ptr, chunks, PAD: tl.constexpr):
    """Grid (rows,): the best of the chunks; equal scores go to the lowest index."""
    row = tl.program_id(0)
    c = tl.arange(0, PAD)
    scores = tl.load(scores_ptr + row * chunks + c, mask=c < chunks, other=float("-inf"))
    tokens = tl.load(tokens_ptr + row * chunks + c, mask=c < chunks, other=NO_TOKEN)
    token = tl.min(tl.where(scores == tl.max(scores, 0), tokens, NO_TOKEN), 0)
    tl.store(out_ptr + row, token.to(tl.int64))


def launch(
    out: torch.Tensor,
    logits: torch.Tensor,
    temperature: torch.Tensor,
    filters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    counters: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    greedy: bool,
) -> None:
    """out [S] int64 for logits [S,V]; temperature [S]; filters top_k, top_p, min_p and counters seeds, choices,
    positions [S] as `ops.SamplingBatch` defines them. greedy: no row has a temperature. A row of -inf alone gives 0."""
    rows, vocab = logits.shape
    chunks = -(-vocab // CHUNK)
    stride, pad = logits.stride(0), next_power_of_2(chunks)
    top_k, top_p, min_p = filters
    bounds = logits.new_empty(rows * chunks * 2, dtype=torch.float32)
    states = [out.new_empty(rows * STATE.value) for _ in range(3)]
    tallies = [bounds.new_empty(rows * chunks * PIVOTS.value) for _ in range(3)]
    masses = [bounds.new_empty(rows) for _ in range(2)]
    count = mass = 0
    if not greedy:
        extremes[(rows, chunks)](
            logits, temperature, top_k, top_p, min_p, bounds, vocab, stride, chunks, CHUNK=CHUNK, num_warps=8
        )
        shape = {"CHUNK": CHUNK, "PART": 1024, "PAD": pad, "num_warps": 8}
        for turn in range(PASSES):  # between buffers 0 and 1
            count, old = turn % 2, 1 - turn % 2
            narrow_count[(rows, chunks)](
                logits, temperature, top_k, bounds, states[old], tallies[old], states[count], tallies[count],
                vocab, stride, chunks, FIRST=turn == 0, **shape,
            )  # fmt: skip
        spare = 1 - count  # top-p goes between this buffer and buffer 2: the result of top-k stays
        old = count
        for turn in range(PASSES):
            mass = 2 if turn % 2 == 0 else spare
            narrow_mass[(rows, chunks)](
                logits, temperature, top_k, top_p, bounds, states[old], tallies[old], masses[turn % 2], states[mass],
                tallies[mass], masses[1 - turn % 2], vocab, stride, chunks, PASS=min(turn, 2), **shape,
            )  # fmt: skip
            old = mass
    scores = bounds.new_empty(rows * chunks)
    tokens = out.new_empty(rows * chunks, dtype=torch.int32)
    draw[(rows, chunks)](
        logits, temperature, top_k, top_p, min_p, *counters, bounds, states[count], tallies[count], states[mass],
        tallies[mass], masses[PASSES % 2], scores, tokens, vocab, stride, chunks,
        GREEDY=greedy, CHUNK=CHUNK, PAD=pad, num_warps=8,
    )  # fmt: skip
    pick[(rows,)](scores, tokens, out, chunks, PAD=pad, num_warps=1)
