"""8-bit cache values, fp8 e4m3 or int8, as float16: exact for both.

Two values that lie beside each other in memory are read as one 16-bit word, so that a transposing matrix load, which
moves 16 bits, can bring them; the dimensions of a head then come apart into even and odd ones. On NVIDIA the bytes are
picked and widened by inline PTX, two values an instruction; elsewhere, the interpreter included, by the plain casts
that define the result.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# x ^ 0x80 is x + 128, which as the low mantissa bits of 1024 reads 1152 + x (0x6480 is 1152): a byte permutation and a
# subtraction for two values, where the conversion instruction takes one at a time.
INT8_TO_HALF: tl.constexpr = tl.constexpr(
    "{ .reg .b32 u, c; xor.b32 u, $2, 0x80808080; mov.b32 c, 0x64806480;"
    " prmt.b32 $0, u, 0x64646464, 0x4140; prmt.b32 $1, u, 0x64646464, 0x4342;"
    " sub.f16x2 $0, $0, c; sub.f16x2 $1, $1, c; }"
)
INT8_PAIRS_TO_HALF: tl.constexpr = tl.constexpr(
    "{ .reg .b32 u, c; xor.b32 u, $2, 0x80808080; mov.b32 c, 0x64806480;"
    " prmt.b32 $0, u, 0x64646464, 0x4240; prmt.b32 $1, u, 0x64646464, 0x4341;"
    " sub.f16x2 $0, $0, c; sub.f16x2 $1, $1, c; }"
)
FP8_PAIRS_TO_HALF: tl.constexpr = tl.constexpr(
    "{ .reg .b32 e, o; .reg .b16 x, y; prmt.b32 e, $2, 0, 0x4420; prmt.b32 o, $2, 0, 0x4431;"
    " mov.b32 {x, y}, e; cvt.rn.f16x2.e4m3x2 $0, x; mov.b32 {x, y}, o; cvt.rn.f16x2.e4m3x2 $1, x; }"
)


@triton.jit
def widen(x, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """Values of fp8 or int8 in DTYPE (float16 or float32). x's last dimension is a multiple of 4."""
    if PTX and x.dtype == tl.int8:
        (wide,) = tl.inline_asm_elementwise(INT8_TO_HALF, "=r,=r,r", [x], (tl.float16,), True, 4)
        return wide.to(DTYPE)
    else:
        return x.to(DTYPE)


@triton.jit
def widen_pairs(pairs, KIND: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """(values at even places, values at odd places) in DTYPE of int16 words that hold two values of KIND each."""
    if PTX:
        if tl.int8 == KIND:
            even, odd = tl.inline_asm_elementwise(
                INT8_PAIRS_TO_HALF, "=r,=r,r", [pairs], (tl.float16, tl.float16), True, 2
            )
        else:
            even, odd = tl.inline_asm_elementwise(
                FP8_PAIRS_TO_HALF, "=r,=r,r", [pairs], (tl.float16, tl.float16), True, 2
            )
        return even.to(DTYPE), odd.to(DTYPE)
    else:
        low = (pairs & 0xFF).to(tl.uint8).to(KIND, bitcast=True)
        high = ((pairs >> 8) & 0xFF).to(tl.uint8).to(KIND, bitcast=True)
        return low.to(DTYPE), high.to(DTYPE)


def paired(cache: torch.Tensor) -> torch.Tensor:
    """A cache of 8-bit values as 16-bit words of two (D even); other caches as they are."""
    return cache.view(torch.int16) if cache.element_size() == 1 else cache
