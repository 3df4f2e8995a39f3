"""Weights as `linear` and `embedding` take them: floats, quantized blocks in ggml's row formats, or fp8 rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import torch


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """An [N, K] matrix as rows of ggml blocks.

    blocks  [N, bytes per row] uint8, each row whole blocks along K
    format  ggml's type name in lower case: q4_0, q4_1, q8_0, q4_k, q5_k, q6_k, ...
    shape   (N, K)
    """

    blocks: torch.Tensor
    format: str
    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes

    def rows(self, index: torch.Tensor) -> QuantizedWeight:
        """The given rows, in the given order (a permutation or a shard over N keeps blocks whole)."""
        return QuantizedWeight(self.blocks[index], self.format, (int(index.numel()), self.shape[1]))


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """[N,K] float8_e4m3fn values with one float32 scale per row [N]."""

    values: torch.Tensor
    scale: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scale.nbytes

    def to(self, device: torch.device) -> Fp8Weight:
        return Fp8Weight(self.values.to(device), self.scale.to(device))


class BackendWeight:
    """A matrix in a backend's own layout, as its prepare_weight makes it: only that backend's ops read it."""

    __slots__ = ()

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        raise AssertionError("a backend's weight knows its size")

    def to(self, device: torch.device) -> BackendWeight:
        """On `device`; one of a backend for the CPU stays where it is."""
        return self


CheckpointWeight: TypeAlias = torch.Tensor | QuantizedWeight
Weight: TypeAlias = CheckpointWeight | Fp8Weight | BackendWeight


@dataclass(frozen=True, slots=True)
class WeightRows:
    """An [N, K] matrix that comes in blocks of whole rows, in order, so that it need not be in memory as a whole.

    shape   (N, K)
    blocks  all float tensors, or all quantized blocks of one format
    """

    shape: tuple[int, int]
    blocks: Iterable[CheckpointWeight | Fp8Weight]


def concatenate(blocks: list[CheckpointWeight | Fp8Weight]) -> CheckpointWeight | Fp8Weight:
    """The rows of all blocks, which are of one kind, as one matrix."""
    tensors = [block for block in blocks if isinstance(block, torch.Tensor)]
    if len(tensors) == len(blocks):
        return torch.cat(tensors)
    scaled = [block for block in blocks if isinstance(block, Fp8Weight)]
    if len(scaled) == len(blocks):
        return Fp8Weight(torch.cat([part.values for part in scaled]), torch.cat([part.scale for part in scaled]))
    quantized = [block for block in blocks if isinstance(block, QuantizedWeight)]
    assert len(quantized) == len(blocks), "blocks of one matrix are of one kind"
    assert len({part.format for part in quantized}) == 1, "blocks of one matrix have one format"
    shape = (sum(part.shape[0] for part in quantized), quantized[0].shape[1])
    return QuantizedWeight(torch.cat([part.blocks for part in quantized]), quantized[0].format, shape)
