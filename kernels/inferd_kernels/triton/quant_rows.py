"""Dynamic quantization of activations: each row to fp8 e4m3 or int8 with its own scale = max|x| / limit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import quant_scale, quantize
from inferd_kernels.triton.tiles import next_power_of_2


@triton.jit
def quant_rows(
    x_ptr, out_ptr, scale_ptr, size, x_stride, BLOCK: tl.constexpr, LIMIT: tl.constexpr, INTEGER: tl.constexpr
):  # fmt: skip
    """Grid (rows,): the row stays in registers between its maximum and its quotients."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK)
    one = tl.arange(0, 1)
    x = tl.load(x_ptr + row * x_stride + c, mask=c < size, other=0.0).to(tl.float32)
    scale = quant_scale(tl.max(tl.abs(x), 0) + tl.zeros([1], tl.float32), LIMIT)
    tl.store(scale_ptr + row + one, scale)
    y = quantize(x, scale, LIMIT, INTEGER).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * size + c, y, mask=c < size)


def launch(out: torch.Tensor, scale: torch.Tensor, x: torch.Tensor) -> None:
    """out [T,K] fp8 e4m3 or int8 and scale [T] float32 for x [T,K], K up to 65,536."""
    rows, size = x.shape
    block = next_power_of_2(size)
    integer = out.dtype == torch.int8
    quant_rows[(rows,)](
        x, out, scale, size, x.stride(0), BLOCK=block, LIMIT=127.0 if integer else 448.0, INTEGER=integer,
        num_warps=min(16, max(1, block // 512)),
    )  # fmt: skip
