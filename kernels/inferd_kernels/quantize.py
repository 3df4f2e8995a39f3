"""Quantization of float matrices at load, to ggml's 4-bit and 8-bit formats with groups of 32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from inferd_kernels.weights import QuantizedWeight

GROUP = 32
CHUNK_VALUES = 1 << 18  # rows are taken in chunks of about this many values, which bounds the memory in use


@dataclass(frozen=True, slots=True)
class Quantized:
    """error: ||W - W'|| / ||W|| of the stored values (0 for a matrix of zeros)."""

    weight: QuantizedWeight
    error: float


def quantize(weight: torch.Tensor, bits: int) -> Quantized:
    """W [N, K] in `bits`: 8 gives q8_0, 4 the better of q4_0 (symmetric) and q4_1 (with a minimum) for this matrix.

    Raises ValueError for other bits, a K that is no multiple of 32, or values that are not finite.
    """
    if bits not in FORMATS:
        raise ValueError(f"bits {bits} is not one of {sorted(FORMATS)}")
    rows, width = weight.shape
    if width % GROUP:
        raise ValueError(f"a width of {width} is no multiple of the group size {GROUP}")
    results = [_quantize_as(weight, kind, *FORMATS[bits][kind]) for kind in FORMATS[bits]]
    best = min(results, key=lambda result: result.error)
    if not best.error < float("inf"):
        raise ValueError("the matrix holds values that are not finite, or too large for float16 scales")
    assert best.weight.blocks.shape[0] == rows
    return best


def _quantize_as(
    weight: torch.Tensor,
    kind: str,
    fit: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    store: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
) -> Quantized:
    rows, width = weight.shape
    chunk = max(1, CHUNK_VALUES // width)
    blocks, lost, total = [], 0.0, 0.0
    for part in weight.split(chunk):
        groups = part.to(torch.float32).unflatten(1, (-1, GROUP))
        codes, scale, minimum = fit(groups)
        lost += float((codes * scale + minimum - groups).square().sum(dtype=torch.float64))
        total += float(groups.square().sum(dtype=torch.float64))
        blocks.append(store(codes, scale, minimum).flatten(1))
    ratio = lost / total if total > 0 else lost
    error = ratio**0.5 if ratio == ratio and total < float("inf") else float("inf")
    return Quantized(QuantizedWeight(torch.cat(blocks), kind, (rows, width)), error)


def _fit_8(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes -127..127, scale, no minimum; each scale as float16 keeps it."""
    scale = _half(groups.abs().amax(-1, keepdim=True) / 127)
    return _codes(groups, scale, torch.zeros(()), -127, 127), scale, torch.zeros_like(scale)


def _fit_4_symmetric(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes -8..7. The value of largest magnitude takes -8; of a few scales around it, each group keeps the best."""
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best: tuple[torch.Tensor, torch.Tensor] | None = None
    lowest = torch.full_like(extreme, float("inf"))
    for step in (8.0, 7.5, 7.0, 8.5, 9.0):
        scale = _half(extreme / -step)
        codes = _codes(groups, scale, torch.zeros(()), -8, 7)
        lost = (codes * scale - groups).square().sum(-1, keepdim=True)
        keep = lost < lowest
        best = (
            (codes, scale) if best is None else (torch.where(keep, codes, best[0]), torch.where(keep, scale, best[1]))
        )
        lowest = torch.minimum(lowest, lost)
    assert best is not None
    return *best, torch.zeros_like(extreme)


def _fit_4_with_minimum(groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """codes 0..15. From the range of the group, scale and minimum are refitted to the codes by least squares."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale, minimum = _half((high - low) / 15), _half(low)
    codes = _codes(groups, scale, minimum, 0, 15)
    lowest = (codes * scale + minimum - groups).square().sum(-1, keepdim=True)
    best = (codes, scale, minimum)
    for _ in range(3):
        centred = codes - codes.mean(-1, keepdim=True)
        spread = centred.square().sum(-1, keepdim=True)
        slope = (centred * groups).sum(-1, keepdim=True) / spread.clamp(min=1)
        scale = _half(slope)
        minimum = _half(groups.mean(-1, keepdim=True) - scale * codes.mean(-1, keepdim=True))
        codes = _codes(groups, scale, minimum, 0, 15)
        lost = (codes * scale + minimum - groups).square().sum(-1, keepdim=True)
        keep = lost < lowest
        best = (
            torch.where(keep, codes, best[0]),
            torch.where(keep, scale, best[1]),
            torch.where(keep, minimum, best[2]),
        )
        lowest = torch.minimum(lowest, lost)
    return best


def _half(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float16).to(torch.float32)


def _codes(groups: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor, low: int, high: int) -> torch.Tensor:
    inverse = torch.where(scale != 0, 1.0 / scale, 0.0)
    return ((groups - minimum) * inverse).round().clamp(low, high)


def _bytes_of(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.float16).contiguous().view(torch.uint8)


def _store_8(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    return torch.cat((_bytes_of(scale), codes.to(torch.int8).view(torch.uint8)), -1)


def _nibbles(codes: torch.Tensor) -> torch.Tensor:
    low, high = codes.to(torch.uint8).chunk(2, -1)
    return low | high << 4


def _store_4_symmetric(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    return torch.cat((_bytes_of(scale), _nibbles(codes + 8)), -1)


def _store_4_with_minimum(codes: torch.Tensor, scale: torch.Tensor, minimum: torch.Tensor) -> torch.Tensor:
    return torch.cat((_bytes_of(scale), _bytes_of(minimum), _nibbles(codes)), -1)


# (fit, store) of each format of a width; `fit` returns codes, scale and minimum per group, w = code * scale + minimum.
FORMATS = {
    8: {"q8_0": (_fit_8, _store_8)},
    4: {
        "q4_0": (_fit_4_symmetric, _store_4_symmetric),
        "q4_1": (_fit_4_with_minimum, _store_4_with_minimum),
    },
}
