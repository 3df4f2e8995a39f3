"""y = x W^T (+ bias) for at most 64 tokens, in bf16, f16 or f32, or fp8 with a scale per token and per weight row.

The operands are swapped: y^T = W x^T, so that the weight's rows fill the tensor core's 64 or 128 rows and the few
tokens its narrow side. For fp8 this halves the instructions of the loop. The weight streams from memory once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.tiles import GemmTile


@triton.jit(do_not_specialize=["tokens"])
def gemm_small(
    x_ptr, w_ptr, bias_ptr, x_scale_ptr, w_scale_ptr, out_ptr, tokens, columns, depth, x_stride, w_stride, out_stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr, BIASED: tl.constexpr,
    SCALED: tl.constexpr,
):  # fmt: skip
    """Grid (weight rows / COLUMNS, tokens / ROWS). EVEN: DEPTH divides the depth."""
    n = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    t = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, DEPTH)
    w_row = w_ptr + n.to(tl.int64)[:, None] * w_stride
    x_row = x_ptr + t[:, None] * x_stride
    acc = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, depth, DEPTH):
        at = start + k
        if EVEN:
            w = tl.load(w_row + at[None, :], mask=(n < columns)[:, None], other=0.0)
            x = tl.load(x_row + at[None, :], mask=(t < tokens)[:, None], other=0.0)
        else:
            w = tl.load(w_row + at[None, :], mask=(n < columns)[:, None] & (at < depth)[None, :], other=0.0)
            x = tl.load(x_row + at[None, :], mask=(t < tokens)[:, None] & (at < depth)[None, :], other=0.0)
        acc = tl.dot(w, tl.trans(x), acc, input_precision="ieee")
    if SCALED:
        w_scale = tl.load(w_scale_ptr + n, mask=n < columns, other=0.0)
        x_scale = tl.load(x_scale_ptr + t, mask=t < tokens, other=0.0)
        acc = acc * w_scale[:, None] * x_scale[None, :]
    if BIASED:
        acc += tl.load(bias_ptr + n, mask=n < columns, other=0.0).to(tl.float32)[:, None]
    where = out_ptr + t.to(tl.int64)[None, :] * out_stride + n[:, None]
    tl.store(where, acc.to(out_ptr.dtype.element_ty), mask=(n < columns)[:, None] & (t < tokens)[None, :])


def launch(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    scales: tuple[torch.Tensor, torch.Tensor] | None,
    tile: GemmTile,
) -> None:
    """out [M,N] = x [M,K] weight [N,K]^T; with scales (x [M], weight [N]) float32 both operands are fp8 e4m3."""
    tokens, depth = x.shape
    columns = weight.shape[0]
    x_scale, w_scale = scales if scales is not None else (x, x)
    gemm_small[(-(-columns // tile.columns), -(-tokens // tile.rows))](
        x, weight, x if bias is None else bias, x_scale, w_scale, out, tokens, columns, depth,
        x.stride(0), weight.stride(0), out.stride(0),
        ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, EVEN=depth % tile.depth == 0,
        BIASED=bias is not None, SCALED=scales is not None, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
