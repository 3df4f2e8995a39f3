"""What every Triton kernel shares: device functions for scalars and rows. Knows no tensor layout."""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN2_HIGH: tl.constexpr = tl.constexpr(0.693145751953125)  # 12 significant bits: k * LN2_HIGH is exact
LN2_LOW: tl.constexpr = tl.constexpr(1.428606820309417e-06)
ROUND_BIAS: tl.constexpr = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it leaves no room for a fraction
SCALE_FLOOR: tl.constexpr = tl.constexpr(7.888609052210118e-31)  # 2^-100, so that a row of zeros divides by a number


@triton.jit
def round_half_even(x):
    """Nearest integer, ties to even, for float32 |x| < 2^22."""
    return (x + ROUND_BIAS) - ROUND_BIAS


@triton.jit
def quant_scale(largest, LIMIT: tl.constexpr):
    """The step that maps |x| <= largest onto the quantized range [-LIMIT, LIMIT]."""
    return tl.maximum(tl.div_rn(largest, tl.full(largest.shape, LIMIT, tl.float32)), SCALE_FLOOR)


@triton.jit
def quantize(x, scale, LIMIT: tl.constexpr, INTEGER: tl.constexpr):
    """x / scale saturated to +-LIMIT, still in float32; for integers also rounded half to even."""
    y = tl.div_rn(x, tl.broadcast_to(scale, x.shape))
    y = tl.minimum(tl.maximum(y, -LIMIT), LIMIT)
    if INTEGER:
        y = round_half_even(y)
    return y


@triton.jit
def silu(x):
    return x / (1.0 + tl.exp2(-x * LOG2E))


@triton.jit
def tanh(x):
    """tanh through one exponential; absolute error 1e-7, exact at both ends."""
    return 1.0 - 2.0 / (tl.exp2(x * (2.0 * LOG2E)) + 1.0)


@triton.jit
def log(x):
    """Natural logarithm of a positive normal float32 to about 2 ulp, everywhere in range.

    The hardware's lg2.approx has an absolute error of 2^-22 near 1, where Gumbel noise takes its largest values.
    x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m = 2 artanh(s), s = (m - 1) / (m + 1), by its series in s^2 < 0.0295.
    """
    bits = x.to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True) - 1.0
    s = tl.div_rn(f, f + 2.0)
    z = s * s
    tail = z * (0.3333333333333333 + z * (0.2 + z * (0.14285714285714285 + z * 0.1111111111111111)))
    power = k.to(tl.float32)
    return power * LN2_HIGH + (2.0 * s + (2.0 * s * tail + power * LN2_LOW))


@triton.jit
def order_key(x):
    """int32 with the order of the float32 x: a < b exactly when order_key(a) < order_key(b) (-0.0 below 0.0)."""
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def uniform(seed, choice, position, first, COUNT: tl.constexpr):
    """u in (0, 1) for tokens first .. first + COUNT - 1, first a multiple of 4: Philox-4x32-10, one group per 4 tokens.

    Counter (token >> 2, position, choice, 0), key the two halves of the seed, lane token & 3 (Salmon et al. 2011).
    """
    zero = tl.zeros([COUNT // 4], tl.uint32)
    group = (first // 4 + tl.arange(0, COUNT // 4)).to(tl.uint32)
    where = zero + (position & 0xFFFFFFFF).to(tl.uint32)
    which = zero + choice.to(tl.uint32)
    low = (seed & 0xFFFFFFFF).to(tl.uint32)
    high = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(group, where, which, zero, low, high, 10)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), [COUNT])
    return ((words >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23: with 24 bits the largest rounds to 1
