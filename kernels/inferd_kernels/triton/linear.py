"""`linear` and `embedding` over the weights a GPU keeps: float tensors, 4-bit planes, fp8 with row scales.

Float weights go to torch (cuBLAS). Quantized ones go to our kernels up to SMALL_TOKENS tokens, where reading the
weight is the whole cost; above that the arithmetic is, and torch's dense matmul does it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from inferd_kernels import reference
from inferd_kernels.triton import gemm_small, gemm_w4, quant_rows
from inferd_kernels.triton.tiles import architecture, gemm_small_tile, gemm_w4_tile
from inferd_kernels.weights import BackendWeight, Fp8Weight, QuantizedWeight, Weight

SMALL_TOKENS = 64
GROUP = 32  # values per block of ggml's q4_0 and q4_1


@dataclass(frozen=True, slots=True)
class W4Weight(BackendWeight):
    """[N,K] values scale (nibble - 8) + offset.

    packed  [N,K/2] uint8, byte j holds weight j in its low and weight j + K/2 in its high nibble
    scale   [N,K/g] float32; offset the same, or None
    """

    packed: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]  # the base only names it
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scale.nbytes + (0 if self.offset is None else self.offset.nbytes)

    def to(self, device: torch.device) -> W4Weight:
        offset = None if self.offset is None else self.offset.to(device)
        return W4Weight(self.packed.to(device), self.scale.to(device), offset)

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """The dequantized matrix."""
        nibbles = torch.cat((self.packed & 0xF, self.packed >> 4), 1).float() - 8
        grouped = nibbles.view(*self.scale.shape, -1) * self.scale.unsqueeze(-1)
        if self.offset is not None:
            grouped = grouped + self.offset.unsqueeze(-1)
        return grouped.view(nibbles.shape).to(dtype)

    def rows(self, index: torch.Tensor) -> W4Weight:
        offset = None if self.offset is None else self.offset[index]
        return W4Weight(self.packed[index], self.scale[index], offset)


def prepare_weight(weight: Weight, dtype: torch.dtype = torch.bfloat16) -> Weight:
    """q4_0 and q4_1 blocks become 4-bit planes; other quantized formats are dequantized to `dtype`; the rest passes."""
    if not isinstance(weight, QuantizedWeight):
        return weight
    if weight.format in ("q4_0", "q4_1") and weight.shape[1] % (2 * GROUP) == 0:
        return _planes(weight)
    return reference.dequantize(weight, dtype)


def _planes(weight: QuantizedWeight) -> W4Weight:
    """ggml blocks of 32: q4_0 is d | 16 bytes, value d (q - 8); q4_1 is d | m | 16 bytes, value d q + m = d (q - 8) +
    (m + 8 d)."""
    rows, depth = weight.shape
    header = 2 if weight.format == "q4_0" else 4
    blocks = weight.blocks.reshape(rows, depth // GROUP, header + GROUP // 2)
    numbers = blocks[..., :header].contiguous().view(torch.float16).float()
    scale = numbers[..., 0].contiguous()
    offset = None if header == 2 else numbers[..., 1] + 8 * scale
    quants = blocks[..., header:]
    nibbles = torch.cat((quants & 0xF, quants >> 4), -1).reshape(rows, depth)
    packed = nibbles[:, : depth // 2] | (nibbles[:, depth // 2 :] << 4)
    return W4Weight(packed.contiguous(), scale, offset)


@torch.library.custom_op("inferd::linear_w4", mutates_args=())
def linear_w4(
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    out = x.new_empty(x.shape[0], packed.shape[0])
    group = 2 * packed.shape[1] // scale.shape[1]
    gemm_w4.launch(out, x, packed, scale, offset, bias, gemm_w4_tile(architecture(), x.shape[0], group))
    return out


@linear_w4.register_fake
def _(x: torch.Tensor, packed: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], packed.shape[0])


@torch.library.custom_op("inferd::linear_fp8", mutates_args=())
def linear_fp8(x: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Activations are quantized per token on the way in."""
    quantized, x_scale = quantize_rows(x, torch.float8_e4m3fn)
    if x.shape[0] > SMALL_TOKENS and _scaled_mm_takes(values):
        wide = _scaled_product(quantized, values, x_scale, scale, x.dtype)
        return wide if bias is None else wide + bias
    out = x.new_empty(x.shape[0], values.shape[0])
    gemm_small.launch(out, quantized, values, bias, (x_scale, scale), gemm_small_tile(architecture(), 1, x.shape[0]))
    return out


def _scaled_product(
    x: torch.Tensor, values: torch.Tensor, x_scale: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Scales per row come with bfloat16 results alone: for another dtype, whose values they would round, the sums come
    in float32 and are scaled here."""
    if dtype == torch.bfloat16:
        return torch._scaled_mm(x, values.t(), x_scale.unsqueeze(1), scale.unsqueeze(0), out_dtype=dtype)
    one = torch.ones((), device=x.device)
    sums = torch._scaled_mm(x, values.t(), one, one, out_dtype=torch.float32)
    return (sums * x_scale.unsqueeze(1) * scale).to(dtype)


def _scaled_mm_takes(values: torch.Tensor) -> bool:
    """cuBLAS wants both sides of an fp8 weight in multiples of 16 (torch 2.11 on an H100 refuses others)."""
    return values.shape[0] % 16 == 0 and values.shape[1] % 16 == 0


@linear_fp8.register_fake
def _(x: torch.Tensor, values: torch.Tensor, *_: object) -> torch.Tensor:
    return x.new_empty(x.shape[0], values.shape[0])


@torch.library.custom_op("inferd::quantize_rows", mutates_args=())
def quantize_rows(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(values [T,K] fp8 e4m3 or int8, scale [T] float32)."""
    out, scale = torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.float32)
    quant_rows.launch(out, scale, x)
    return out, scale


@quantize_rows.register_fake
def _(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.float32)


def linear(x: torch.Tensor, weight: Weight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T,K] @ weight [N,K]^T + bias [N] -> [T,N] in x.dtype."""
    if isinstance(weight, Fp8Weight):
        return linear_fp8(x, weight.values, weight.scale, bias)
    if isinstance(weight, W4Weight):
        if x.shape[0] <= SMALL_TOKENS and x.dtype in (torch.bfloat16, torch.float16):
            return linear_w4(x, weight.packed, weight.scale, weight.offset, bias)
        return F.linear(x, weight.values(x.dtype), bias)
    assert isinstance(weight, torch.Tensor), "a weight from prepare_weight"
    return F.linear(x, weight, bias)


def embedding(ids: torch.Tensor, weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """Rows `ids` [T] of weight [V,E] -> [T,E] in `dtype`."""
    if isinstance(weight, W4Weight):
        return weight.rows(ids).values(dtype)
    if isinstance(weight, Fp8Weight):
        return reference.dequantize_fp8(weight, dtype, ids)
    assert isinstance(weight, torch.Tensor), "a weight from prepare_weight"
    return F.embedding(ids, weight).to(dtype)
