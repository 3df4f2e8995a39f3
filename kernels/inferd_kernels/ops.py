"""The only door to kernels: `load_ops` picks, per op, one implementation at start and returns them as one value.

Shapes in this package: T packed query tokens of a step, B sequences, S rows that sample, Hq/Hk query and KV heads,
G = Hq / Hk, D head dim, E hidden size, N x K weight, V vocabulary, P page (tokens per KV block).

KV layout, the same on every device: K and V separate, [blocks, P, Hk, D], last dimension contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from inferd_kernels.weights import Weight


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
class Ops:
    """One implementation per op. Signatures are those of `inferd_kernels.reference`, which defines each op's result.

    prepare_weight  (weight) -> weight           repack once at load for `linear` and `embedding` of this backend
    linear          (x [T,K], weight [N,K], bias [N] | None) -> [T,N]
    embedding       (ids [T] int64, weight [V,E], dtype) -> [T,E]
    rms_norm        (x [T,E], weight [E], eps) -> [T,E]
    add_rms_norm    (x [T,E], residual [T,E], weight [E], eps) -> (normed [T,E], residual + x [T,E])
    rope_kv_write   (qkv [T,(Hq+2Hk)D], k_cache, v_cache, batch, rope | None, shape, qk_norm | None) -> q [T,Hq,D]
    paged_attention (q [T,Hq,D], k_cache, v_cache, batch, shape) -> [T,Hq,D]
    silu_mul        (gate_up [T,2I]) -> [T,I]
    sample          (logits [S,V], batch) -> ids [S] int64
    copy_blocks     (cache, sources, destinations) copies whole KV blocks in place
    add_layer_norm  (x [T,E], residual [T,E] | None, weight [E], bias [E], eps) -> [T,E]
    activate        (x [T,I], name) -> [T,I]; name is gelu, gelu_tanh or relu
    self_attention  (qkv [T,(Hq+2Hk)D], cu_seqlens [B+1] int32, shape) -> [T,Hq,D], every token sees its whole sequence
    """

    backends: Mapping[str, str]
    prepare_weight: Callable[..., Weight]
    linear: Callable[..., torch.Tensor]
    embedding: Callable[..., torch.Tensor]
    rms_norm: Callable[..., torch.Tensor]
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    rope_kv_write: Callable[..., torch.Tensor]
    paged_attention: Callable[..., torch.Tensor]
    silu_mul: Callable[..., torch.Tensor]
    sample: Callable[..., torch.Tensor]
    copy_blocks: Callable[..., None]
    add_layer_norm: Callable[..., torch.Tensor]
    activate: Callable[..., torch.Tensor]
    self_attention: Callable[..., torch.Tensor]


OP_NAMES = tuple(field.name for field in fields(Ops) if field.name != "backends")


def load_ops(device: str = "cpu", backend: str = "auto") -> Ops:
    """Choose the implementation of every op for `device`.

    backend: "auto" takes the fastest available one per op, "reference" torch alone.
    Raises ValueError when `backend` is unknown or cannot run on `device`.
    """
    from inferd_kernels import reference

    if backend not in ("auto", "reference"):
        raise ValueError(f"kernel backend {backend!r} is not one of auto, reference")
    chosen = {name: ("reference", getattr(reference, name)) for name in OP_NAMES}
    return Ops(
        backends=MappingProxyType({name: label for name, (label, _) in chosen.items()}),
        **{name: function for name, (_, function) in chosen.items()},
    )
