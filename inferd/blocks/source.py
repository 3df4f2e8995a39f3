"""What a block sees of a checkpoint while it loads: its own parameters by name, ready to compute with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import Ops, Rope
    from inferd_kernels.weights import Weight

    from inferd.blocks.linear import Linear
    from inferd.blocks.rope import RopeSpec


class BlockSource(Protocol):
    """The parameters of one block, as its rank holds them. Raises StartupError for what cannot be read or used."""

    @property
    def ops(self) -> Ops: ...

    @property
    def dtype(self) -> torch.dtype:
        """The model's."""

    def linear(self, *names: str) -> Linear:
        """The matrices `names`, fused along their rows, with their biases where the block has declared them."""

    def expert_matrix(self, expert: int, *names: str) -> Weight:
        """The matrices `names` of one expert, fused along their rows, for `Ops.prepare_experts`."""

    def biases(self, num_experts: int, *names: str) -> torch.Tensor:
        """The biases of all experts, [experts, size] float32, fused like their matrices."""

    def row_parallel(self, name: str) -> Linear:
        """A matrix of which this rank may hold some input columns: the ranks' products are summed."""

    @property
    def reduce(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Sums a tensor over the ranks that share a layer, in place; None where there is one."""

    def part(self, prefix: str) -> BlockSource:
        """The parameters whose names begin with `prefix` as well."""

    def floats(self, name: str) -> torch.Tensor:
        """A matrix as floats in the model's dtype, whatever the file keeps it in."""

    def vector(self, name: str) -> torch.Tensor:
        """A vector in the model's dtype."""

    def filled(self, size: int, value: float) -> torch.Tensor:
        """A vector [size] of equal values in the model's dtype."""

    def rope(self, spec: RopeSpec) -> Rope:
        """The rotary table of every position that is served; layers that rotate alike share one."""
