"""Norms of the residual stream: RMSNorm and LayerNorm. T packed tokens, E hidden size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferd.blocks.parameters import Parameter

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import Ops

    from inferd.blocks.source import BlockSource


@dataclass(frozen=True, slots=True)
class NormSpec:
    """offset is added to the stored weight: 1 where a checkpoint stores the difference from 1 (Gemma). A LayerNorm may
    come without weight or without bias; an RMSNorm has no bias."""

    kind: Literal["rms", "layer"]
    eps: float
    offset: float = 0.0
    has_weight: bool = True
    has_bias: bool = False

    def parameters(self, name: str, size: int) -> Iterator[Parameter]:
        if self.has_weight:
            yield Parameter(f"{name}.weight", (size,))
        if self.has_bias:
            yield Parameter(f"{name}.bias", (size,))


def rms(eps: float, offset: float = 0.0) -> NormSpec:
    return NormSpec("rms", eps, offset)


def layer_norm(eps: float, has_bias: bool = True) -> NormSpec:
    return NormSpec("layer", eps, has_bias=has_bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """A norm with its weights, [E] each; bias is None for an RMSNorm."""

    kind: Literal["rms", "layer"]
    eps: float
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    @classmethod
    def load(cls, spec: NormSpec, name: str, size: int, source: BlockSource) -> Norm:
        """Where the checkpoint has no weight it is one, and the bias of a LayerNorm without one is zero."""
        weight = source.vector(f"{name}.weight") if spec.has_weight else source.filled(size, 1.0)
        if spec.offset:
            weight = weight + spec.offset
        bias = None
        if spec.kind == "layer":
            bias = source.vector(f"{name}.bias") if spec.has_bias else source.filled(size, 0.0)
        return cls(spec.kind, spec.eps, weight, bias)

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] -> [T, E]."""
        if self.bias is None:
            return ops.rms_norm(x, self.weight, self.eps)
        return ops.add_layer_norm(x, None, self.weight, self.bias, self.eps)

    def of_sum(self, ops: Ops, update: torch.Tensor | None, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(the norm of stream + update, that sum), each [T, E]. update None counts as zero."""
        if update is None:
            return self(ops, stream), stream
        if self.bias is None:
            return ops.add_rms_norm(update, stream, self.weight, self.eps)
        stream = stream + update
        return self(ops, stream), stream
