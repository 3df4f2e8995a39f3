"""SiLU(gate) * up, the gated activation of Llama's MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from inferd_kernels.triton.device import silu

BLOCK = 1024


@triton.jit
def silu_mul(gate_up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """Grid (rows, blocks of columns). silu is rounded to storage before the product, as two torch ops would."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < size
    kind = gate_up_ptr.dtype.element_ty
    gate = tl.load(gate_up_ptr + row * 2 * size + c, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * size + size + c, mask=inside, other=0.0).to(tl.float32)
    product = silu(gate).to(kind).to(tl.float32) * up
    tl.store(out_ptr + row * size + c, product.to(kind), mask=inside)


def launch(out: torch.Tensor, gate_up: torch.Tensor) -> None:
    """out [T,I] for gate_up [T,2I] = gate | up."""
    rows, size = out.shape
    silu_mul[(rows, -(-size // BLOCK))](gate_up, out, size, BLOCK=BLOCK, num_warps=4)
