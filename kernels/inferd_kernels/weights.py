"""Weights as `linear` and `embedding` take them: a float tensor, or quantized blocks in ggml's row formats."""

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


class BackendWeight:
    """A matrix in a backend's own layout, as its prepare_weight makes it: only that backend's ops read it."""

    __slots__ = ()

    shape: tuple[int, int]

    @property
    def nbytes(self) -> int:
        raise AssertionError("a backend's weight knows its size")


CheckpointWeight: TypeAlias = torch.Tensor | QuantizedWeight
Weight: TypeAlias = CheckpointWeight | BackendWeight


@dataclass(frozen=True, slots=True)
class WeightRows:
    """An [N, K] matrix that comes in blocks of whole rows, in order, so that it need not be in memory as a whole.

    shape   (N, K)
    blocks  all float tensors, or all quantized blocks of one format
    """

    shape: tuple[int, int]
    blocks: Iterable[CheckpointWeight]
