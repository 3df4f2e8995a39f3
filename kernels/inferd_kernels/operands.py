"""What the ops take and return beside plain tensors: frozen values, the same for every backend.

Shapes in this package: T packed query tokens of a step, B sequences, S rows that sample, Hq/Hk query and KV heads,
G = Hq / Hk, D head dim, E hidden size, I width between the matrices of a feed-forward block, n experts, k of them per
token, N x K weight, V vocabulary, P page (tokens per KV block).

KV layout, the same on every device: K and V separate, [blocks, P, Hk, D], last dimension contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from inferd_kernels.weights import Weight

Activation: TypeAlias = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2", "clamped_swiglu"]


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """Where the T packed tokens of one step sit in the paged KV cache. Sequences with one query token come first.

    positions     [T] int64   absolute position of each token in its sequence
    slots         [T] int64   block * P + offset the token's K and V are written to; -1 writes nothing
    cu_seqlens    [B+1] int32 query rows of sequence i are cu_seqlens[i]:cu_seqlens[i+1]
    seq_lens      [B] int32   tokens of context of sequence i, those of this step included
    block_tables  [B, max_blocks] int32, padded with -1
    """

    positions: torch.Tensor
    slots: torch.Tensor
    cu_seqlens: torch.Tensor
    seq_lens: torch.Tensor
    block_tables: torch.Tensor
    num_decodes: int  # the first num_decodes sequences have exactly one query token
    max_query_len: int
    max_seq_len: int


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding in the half-split ("neox") form: cos_sin [max_positions, rotary_dim] float32, cos | sin."""

    cos_sin: torch.Tensor
    rotary_dim: int


@dataclass(frozen=True, slots=True)
class QkNorm:
    """RMS norm over each head's D before the rotation (Qwen3)."""

    q_weight: torch.Tensor
    k_weight: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention needs to know beside tensors. window 0: full; softcap 0: none."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    softcap: float = 0.0


@dataclass(frozen=True, slots=True)
class KVCache:
    """K and V of one layer, each [blocks, P, Hk, D]; those of 8 bits are multiplied by scales."""

    k: torch.Tensor
    v: torch.Tensor
    scales: tuple[torch.Tensor, torch.Tensor] | None = None  # K's and V's, [blocks, P, Hk] float32

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory of the layer; the first dimension counts blocks."""
        return (self.k, self.v, *(self.scales or ()))


@dataclass(frozen=True, slots=True)
class LatentCache:
    """What latent attention keeps of one layer: [blocks, P, size]."""

    latents: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.latents,)


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention: how it attends, and the cache it reads and writes."""

    shape: AttentionShape
    cache: KVCache
    rope: Rope | None = None
    qk_norm: QkNorm | None = None
    # [Hq] float32: one logit per query head that joins the softmax and carries no value (Xiao et al. 2023; gpt-oss).
    sinks: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Per-row sampling parameters, each [S]. temperature 0: greedy (lowest index wins ties).

    top_k 0, top_p 1, min_p 0: off.

    seeds hold the 64 bits of an unsigned seed as int64. A row's token depends only on its own logits and
    (seed, choice, position), never on its neighbours.
    """

    temperature: torch.Tensor  # float32
    top_k: torch.Tensor  # int32
    top_p: torch.Tensor  # float32
    min_p: torch.Tensor  # float32
    seeds: torch.Tensor  # int64
    choices: torch.Tensor  # int32
    positions: torch.Tensor  # int64, the position the sampled token will have
    all_greedy: bool


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """One pre-norm decoder layer with a SiLU-gated feed-forward block, for `Ops.decoder_stack`.

    qkv      [(Hq + 2 Hk) D, E] q | k | v rows, o [E, Hq D], gate_up [2 I, E] gate | up rows, down [E, I]: each as
             1 to 3 row blocks from `prepare_weight`, more than one where their formats differ
    Norm weights and biases are float32.
    """

    qkv: tuple[Weight, ...]
    o: tuple[Weight, ...]
    gate_up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    attention: Attention
    qkv_bias: torch.Tensor | None = None
    o_bias: torch.Tensor | None = None


# `Ops.decoder_stack`'s result: (residual stream [T,E] float32, batch) -> the stream after the layers.
Stack: TypeAlias = Callable[[torch.Tensor, PagedBatch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Routes:
    """Which experts a token goes to, and how much each of their results counts."""

    ids: torch.Tensor  # [T, k] int32, distinct in a row
    weights: torch.Tensor  # [T, k] float32


@dataclass(frozen=True, slots=True)
class ExpertWeights:
    """The experts of one layer, as `Ops.prepare_experts` returns them; a backend may keep more in a subclass.

    gate_up  per expert [2I, E], gate rows then up rows; down per expert [E, I]
    gate_up_bias  [n, 2I] float32 or None; down_bias [n, E] float32 or None
    """

    gate_up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    activation: Activation

    @property
    def nbytes(self) -> int:
        """Of all experts."""
        biases = [bias.nbytes for bias in (self.gate_up_bias, self.down_bias) if bias is not None]
        return sum(weight.nbytes for weight in (*self.gate_up, *self.down)) + sum(biases)
