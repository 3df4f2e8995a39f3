"""A linear layer whose weight may be several row blocks of different formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops
from inferd_kernels.weights import Weight


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + bias.

    parts: prepared weights [N_i, K]; more than one where the parts of a fused projection (q | k | v, gate | up) have
    formats that cannot be one matrix. bias: [N] over all parts. reduce: sums the product over the ranks that each hold
    some of the columns K, before the bias is added.
    """

    parts: tuple[Weight, ...]
    bias: torch.Tensor | None = None
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """x [T, K] -> [T, N]."""
        if len(self.parts) == 1 and self.reduce is None:
            return ops.linear(x, self.parts[0], self.bias)
        products = [ops.linear(x, part, None) for part in self.parts]
        out = products[0] if len(products) == 1 else torch.cat(products, dim=-1)
        if self.reduce is not None:
            out = self.reduce(out)
        return out if self.bias is None else out + self.bias
