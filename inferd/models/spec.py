"""DecoderSpec: a decoder-only model as numbers. Loads no torch; knows no weight and no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK-by-parts interpolation and an attention temperature (Peng et al. 2023)."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, slots=True)
class DivisorScaling:
    """Each frequency divided by its own divisor: LongRoPE with one set for every length, and what GGUF files state."""

    divisors: tuple[float, ...]
    attention_factor: float


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | DivisorScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first rotary_dim dimensions of each head."""

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None


Norm: TypeAlias = Literal["rms", "layer"]
Activation: TypeAlias = Literal["silu_gated", "relu", "gelu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A pre-norm decoder: grouped-query attention and an MLP, each after a norm, each added to the stream.

    Llama-like unless stated otherwise: RMSNorm, rotary positions, an MLP gated by SiLU. `norm` "layer" is LayerNorm
    with bias; `rope` None goes with num_positions learned vectors, of which position p takes the one at
    p + position_offset.

    windows: sliding attention window of each layer in tokens (the query's own included), 0 for full attention.
    context_length: positions the model was made for, RoPE scaling included.
    has_head: False for a bare model, whose last hidden states are all there is: it embeds, and has no logits.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float
    rope: RopeSpec | None
    windows: tuple[int, ...]
    context_length: int
    qk_norm: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False
    has_head: bool = True
    norm: Norm = "rms"
    activation: Activation = "silu_gated"
    num_positions: int = 0
    position_offset: int = 0

    @property
    def is_gated(self) -> bool:
        return self.activation == "silu_gated"

    @property
    def q_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim
