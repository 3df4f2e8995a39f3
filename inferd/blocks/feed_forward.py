"""The feed-forward block: one activation between two matrices, gated by a third or not. T packed tokens, E hidden
size, I intermediate size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from inferd.blocks.parameters import Parameter, Share

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import Ops

    from inferd.blocks.linear import Linear
    from inferd.blocks.source import BlockSource

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped_swiglu"]


@dataclass(frozen=True, slots=True)
class FeedForwardSpec:
    """down(activation(gate x) * up x), or down(activation(up x)) where it is not gated."""

    intermediate_size: int
    activation: Activation
    is_gated: bool = True
    has_bias: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The matrices that read the stream."""
        return ("gate", "up") if self.is_gated else ("up",)

    def parameters(self, hidden_size: int, share: Share) -> Iterator[Parameter]:
        size, inner = self.intermediate_size, share.inner(self.intermediate_size)
        for name in self.inputs:
            yield Parameter(f"{name}.weight", (size, hidden_size), inner)
            if self.has_bias:
                yield Parameter(f"{name}.bias", (size,), inner)
        yield Parameter("down.weight", (hidden_size, size), None, inner)
        if self.has_bias:
            yield Parameter("down.bias", (hidden_size,))

    def widest(self, share: Share) -> int:
        return 3 * len(share.inner(self.intermediate_size))

    def load(self, source: BlockSource, share: Share) -> FeedForward:
        return FeedForward(source.linear(*self.inputs), source.row_parallel("down"), self.activation, self.is_gated)


@dataclass(frozen=True, slots=True)
class FeedForward:
    """up holds gate | up rows where the block is gated."""

    up: Linear
    down: Linear
    activation: Activation
    is_gated: bool

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] -> [T, E]."""
        inner = self.up(ops, x)
        if not self.is_gated:
            return self.down(ops, ops.activate(inner, self.activation))
        return self.down(ops, ops.activate_gated(inner, self.activation))
