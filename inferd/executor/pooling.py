"""Hidden states of one input -> one vector."""

from __future__ import annotations

import torch

from inferd.request import PoolingParams
from inferd.step import PlanItem


class PooledPrompt:
    """The vector of a decoder's prompt, which may come in chunks: the mean of its states, or the last one."""

    def __init__(self, params: PoolingParams) -> None:
        assert params.kind in ("mean", "last"), f"a decoder does not pool by {params.kind}"
        self._params = params
        self._sum: torch.Tensor | None = None  # [E] float32, of the chunks so far

    def needed(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of an item's rows [n, E] that count."""
        return rows[-1:] if self._params.kind == "last" else rows

    def add(self, item: PlanItem, states: torch.Tensor) -> torch.Tensor | None:
        """Take in the hidden states of the needed rows; the vector [E] float32 once the prompt is complete."""
        chunk = states.float().sum(0)
        is_mean = self._params.kind == "mean"
        self._sum = chunk if self._sum is None or not is_mean else self._sum + chunk
        if item.start + len(item.token_ids) < self._params.num_tokens:
            return None
        return self._sum / self._params.num_tokens if is_mean else self._sum


def pool(states: torch.Tensor, kind: str) -> torch.Tensor:
    """One vector [E] float32 of the hidden states [n, E] of a whole input."""
    if kind == "mean":
        return states.float().mean(0)
    return states[-1 if kind == "last" else 0].float()


def float32_bytes(vector: torch.Tensor) -> bytes:
    """Little-endian values; nothing when one is not finite, for then none can be trusted."""
    values = vector.cpu().numpy()
    return values.astype("<f4").tobytes() if bool(torch.isfinite(vector).all()) else b""
