"""RMS norm, with the residual add before it and fp8 or int8 row quantization after it fused in.

y = x / sqrt(mean(x^2) + eps) * weight in float32; the quotient is rounded to storage before the product, and the norm
reads the *rounded* residual sum, so that fused equals unfused (Zhang & Sennrich 2019).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import quant_scale, quantize
from inferd_kernels.triton.tiles import next_power_of_2


@triton.jit
def norm_rows(
    x_ptr, residual_ptr, weight_ptr, out_ptr, hidden_ptr, scale_ptr, eps, size, x_stride,
    BLOCK: tl.constexpr, ADD: tl.constexpr, LIMIT: tl.constexpr, INTEGER: tl.constexpr,
):  # fmt: skip
    """Grid (rows,): the whole row in one program, so its bits do not depend on the batch."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    inside = c < size
    kind = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + c, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        residual = tl.load(residual_ptr + row * size + c, mask=inside, other=0.0).to(tl.float32)
        stored = (x + residual).to(kind)
        tl.store(hidden_ptr + row * size + c, stored, mask=inside)
        x = stored.to(tl.float32)
    inverse = tl.rsqrt(tl.sum(x * x, 0) / size + eps)
    weight = tl.load(weight_ptr + c, mask=inside, other=0.0).to(tl.float32)
    y = ((x * inverse).to(kind).to(tl.float32) * weight).to(kind)
    if LIMIT > 0:
        wide = y.to(tl.float32)
        one = tl.arange(0, 1)
        scale = quant_scale(tl.max(tl.abs(wide), 0) + tl.zeros([1], tl.float32), LIMIT)
        tl.store(scale_ptr + row + one, scale)
        tl.store(
            out_ptr + row * size + c, quantize(wide, scale, LIMIT, INTEGER).to(out_ptr.dtype.element_ty), mask=inside
        )
    else:
        tl.store(out_ptr + row * size + c, y, mask=inside)


def launch(
    out: torch.Tensor,
    hidden: torch.Tensor | None,
    scale: torch.Tensor | None,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
) -> None:
    """out [T,E] = norm(x [+ residual]); hidden [T,E] = x + residual; scale [T] float32 when out is fp8 e4m3 or int8."""
    rows, size = x.shape
    block = next_power_of_2(size)
    limit = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}[out.dtype] if scale is not None else 0.0
    norm_rows[(rows,)](
        x, x if residual is None else residual, weight, out, x if hidden is None else hidden,
        out if scale is None else scale, eps, size, x.stride(0),
        BLOCK=block, ADD=residual is not None, LIMIT=limit, INTEGER=out.dtype == torch.int8,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
