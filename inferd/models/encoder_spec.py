"""EncoderSpec: a BERT-like encoder as numbers. Loads no torch; knows no weight and no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """Post-norm LayerNorm, attention in both directions, learned absolute positions (Devlin et al. 2018).

    context_length: rows of the position table. num_labels: outputs of the classification head, 0 without one.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    token_types: int
    norm_eps: float
    activation: Activation
    context_length: int
    num_labels: int = 0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads
