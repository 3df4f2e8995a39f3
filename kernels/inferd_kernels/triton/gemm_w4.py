"""y = x W^T for 4-bit weights with a scale (and, if wanted, a minimum) per group of a row, 16-bit activations.

Two planes: byte j of a row holds weight j in its low and weight j + K/2 in its high nibble, so unpacking needs no
shuffle.
A nibble n becomes a float without conversion: as the low mantissa bits of 128 (bf16) or 1024 (f16) it reads 128 + n or
1024 + n, and one subtraction gives n - 8. Scales multiply the product of a whole group, not each weight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.tiles import GemmTile


@triton.jit
def unpack(nibbles, KIND: tl.constexpr):
    """int16 holding 0..15 -> n - 8 in KIND (bfloat16 or float16), exactly."""
    if tl.bfloat16 == KIND:
        return (nibbles | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    else:
        return (nibbles | 0x6400).to(tl.float16, bitcast=True) - 1032.0


@triton.jit
def add_plane(acc, nibbles, x, scale_ptr, offset_ptr, group, live, OFFSET: tl.constexpr):
    """acc + scale * (w - 8) x^T + offset * sum(x), for one group of one plane."""
    product = tl.dot(unpack(nibbles, x.dtype), tl.trans(x))
    acc += product * tl.load(scale_ptr + group, mask=live, other=0.0).to(tl.float32)[:, None]
    if OFFSET:
        total = tl.sum(x.to(tl.float32), 1)
        acc += tl.load(offset_ptr + group, mask=live, other=0.0).to(tl.float32)[:, None] * total[None, :]
    return acc


@triton.jit(do_not_specialize=["tokens"])
def gemm_w4(
    x_ptr, w_ptr, scale_ptr, offset_ptr, bias_ptr, out_ptr, tokens, columns, depth, x_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr, OFFSET: tl.constexpr,
    BIASED: tl.constexpr,
):  # fmt: skip
    """Grid (weight rows / COLUMNS, tokens / ROWS). DEPTH divides GROUP, GROUP divides depth / 2."""
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, DEPTH)
    half = depth // 2
    groups = depth // GROUP
    live = n < columns
    wide = n.to(tl.int64)
    w_row = w_ptr + wide[:, None] * half
    x_row = x_ptr + t[:, None] * x_stride
    acc = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, half, DEPTH):
        packed = tl.load(w_row + (start + k)[None, :], mask=live[:, None], other=0).to(tl.int16)
        low = tl.load(x_row + (start + k)[None, :], mask=(t < tokens)[:, None], other=0.0)
        high = tl.load(x_row + (half + start + k)[None, :], mask=(t < tokens)[:, None], other=0.0)
        group = wide * groups + start // GROUP
        acc = add_plane(acc, packed & 0xF, low, scale_ptr, offset_ptr, group, live, OFFSET)
        acc = add_plane(acc, packed >> 4, high, scale_ptr, offset_ptr, group + groups // 2, live, OFFSET)
    if BIASED:
        acc += tl.load(bias_ptr + n, mask=live, other=0.0).to(tl.float32)[:, None]
    where = out_ptr + t.to(tl.int64)[None, :] * out_stride + n[:, None]
    tl.store(where, acc.to(out_ptr.dtype.element_ty), mask=live[:, None] & (t < tokens)[None, :])


def launch(
    out: torch.Tensor,
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
    tile: GemmTile,
) -> None:
    """out [M,N] = x [M,K] W^T, W[n,k] = scale[n,k/g] (nibble - 8) + offset[n,k/g]; packed [N,K/2] uint8 in two planes,
    scale and offset [N,K/g]. x is bfloat16 or float16."""
    tokens, depth = x.shape
    columns = packed.shape[0]
    group = depth // scale.shape[1]
    gemm_w4[(-(-columns // tile.columns), -(-tokens // tile.rows))](
        x, packed, scale, scale if offset is None else offset, x if bias is None else bias, out, tokens, columns, depth,
        x.stride(0), out.stride(0),
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=group, OFFSET=offset is not None,
        BIASED=bias is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
