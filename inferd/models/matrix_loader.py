"""Stored parts of one matrix -> what the kernels compute with: fused, converted or quantized, in their layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from inferd_kernels.ops import Ops
from inferd_kernels.quantize import quantize
from inferd_kernels.reference import dequantize, quantize_rows
from inferd_kernels.weights import CheckpointWeight, Fp8Weight, QuantizedWeight, Weight, WeightRows

from inferd.config import Quantization
from inferd.errors import StartupError
from inferd.models.extract_reader import ExtractReader
from inferd.models.stored import Extract
from inferd.models.tensor_files import FLOAT_FORMATS

WeightT = TypeVar("WeightT", CheckpointWeight, Weight)


@dataclass(frozen=True, slots=True)
class MatrixLoader:
    """quantization: of float matrices. The embedding and the head get 8 bits at least."""

    reader: ExtractReader
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    quantization: Quantization | None = None

    def load(self, parts: Sequence[Extract], is_outer: bool = False) -> tuple[Weight, ...]:
        """The prepared parts of one matrix: fused to one where formats allow it, before preparation if possible.

        is_outer: the matrix is the embedding or the head.
        """
        kind = "q8" if self.quantization == "q4" and is_outer else self.quantization
        if self._comes_in_blocks(parts, kind):
            return (self._packed(parts, kind),)
        raw = [self.reader.read(part) for part in parts]
        if (fused := _concatenate(raw)) is not None:
            raw = [fused]  # and the parts are gone before there is a third copy
        prepared: list[Weight] = [self._prepare(parts[0], part, kind) for part in raw]
        joined = _concatenate(prepared)
        return (joined,) if joined is not None else tuple(prepared)

    def joined(self, parts: Sequence[Extract]) -> CheckpointWeight | Fp8Weight:
        """One matrix of all parts, not yet prepared: in their format if they have one, else as floats."""
        raw = [self.reader.read(part) for part in parts]
        with _naming(parts[0]):
            fused = _concatenate(raw)
            if fused is None:
                floats = [part if isinstance(part, torch.Tensor) else dequantize(part) for part in raw]
                fused = torch.cat([part.to(self.dtype) for part in floats])
            converted = self._converted(fused, self.quantization)
        return converted if isinstance(converted, QuantizedWeight) else converted.to(self.device)

    def _comes_in_blocks(self, parts: Sequence[Extract], kind: Quantization | None) -> bool:
        """Whether the parts are one matrix whose rows can be prepared without having seen the others."""
        formats = {part.record.format for part in parts}
        if not self.ops.packs_blocks:
            return False
        if formats <= FLOAT_FORMATS.keys():
            # q4 is the better of two formats for the whole matrix; no backend that packs takes fp8.
            return kind in (None, "q8")
        return len(formats) == 1

    def _packed(self, parts: Sequence[Extract], kind: Quantization | None) -> Weight:
        """Read and packed some rows at a time: a whole embedding twice would be a good part of a shard."""
        blocks = (self._converted(block, kind) for part in parts for block in self.reader.blocks(part))
        rows = WeightRows((sum(part.shape[0] for part in parts), parts[0].shape[1]), blocks)
        with _naming(parts[0]):
            return self.ops.pack_rows(rows, self.dtype)

    def _prepare(self, part: Extract, weight: CheckpointWeight, kind: Quantization | None) -> Weight:
        """In the form of the kernels: quantized blocks stay blocks where the backend computes on them."""
        with _naming(part):
            prepared = self.ops.prepare_weight(self._converted(weight, kind), self.dtype)
        return prepared if isinstance(prepared, QuantizedWeight) else prepared.to(self.device)

    def _converted(self, weight: CheckpointWeight, kind: Quantization | None) -> CheckpointWeight | Fp8Weight:
        """A float matrix in the model's dtype, or quantized as was asked for."""
        if not isinstance(weight, torch.Tensor):
            return weight
        weight = weight.to(self.dtype)
        return weight if kind is None else _quantized(weight, kind, self.device)


@contextmanager
def _naming(part: Extract) -> Iterator[None]:
    """A matrix that cannot be prepared is an error of the checkpoint."""
    try:
        yield
    except ValueError as error:
        raise StartupError(f"{part.record.file}: tensor {part.record.name}: {error}") from None


def _quantized(weight: torch.Tensor, kind: Quantization, device: torch.device) -> CheckpointWeight | Fp8Weight:
    """fp8: e4m3 values with a scale per row, made on `device`; q4, q8: ggml's groups of 32. Raises ValueError for
    values that have no such form."""
    if kind != "fp8":
        return quantize(weight, 4 if kind == "q4" else 8).weight
    weight = weight.to(device)
    if not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
        raise ValueError("the matrix holds values that are not finite")
    return Fp8Weight(*quantize_rows(weight, torch.float8_e4m3fn))


def _concatenate(parts: Sequence[WeightT]) -> WeightT | None:
    """The parts as one weight over their rows; None when their formats differ."""
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors) if len({part.dtype for part in tensors}) == 1 else None
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(quantized) < len(parts) or len({part.format for part in quantized}) > 1:
        return None
    shape = (sum(part.shape[0] for part in quantized), quantized[0].shape[1])
    return QuantizedWeight(torch.cat([part.blocks for part in quantized]), quantized[0].format, shape)
