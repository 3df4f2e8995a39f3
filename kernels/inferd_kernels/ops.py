"""The only door to kernels: `load_ops` picks, per op, one implementation at start and returns them as one value.

Shapes in this package: T packed query tokens of a step, B sequences, S rows that sample, Hq/Hk query and KV heads,
G = Hq / Hk, D head dim, E hidden size, N x K weight, V vocabulary, P page (tokens per KV block).

KV layout, the same on every device: K and V separate, [blocks, P, Hk, D], last dimension contiguous.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.util import find_spec
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

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
class KVCache:
    """K and V of one layer, each [blocks, page, kv_heads, head_dim]; those of 8 bits are multiplied by scales."""

    k: torch.Tensor
    v: torch.Tensor
    scales: tuple[torch.Tensor, torch.Tensor] | None = None  # K's and V's, [blocks, page, kv_heads] float32

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory of the layer; the first dimension counts blocks."""
        return (self.k, self.v, *(self.scales or ()))


@dataclass(frozen=True, slots=True)
class LatentCache:
    """What latent attention keeps of one layer: [blocks, page, size]."""

    latents: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.latents,)


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
    """One pre-norm decoder layer with a SiLU-gated MLP, for `Ops.decoder_stack`.

    qkv      [(Hq + 2 Hk) D, E] q | k | v rows, o [E, Hq D], gate_up [2 I, E] gate | up rows, down [E, I]: each as
             1 to 3 row blocks from `prepare_weight`, more than one where their formats differ
    k_cache  [blocks, P, Hk, D], v_cache the same; kv_scales of 8-bit ones, as in `Ops.paged_attention`
    Norm weights and biases are float32.
    """

    qkv: tuple[Weight, ...]
    o: tuple[Weight, ...]
    gate_up: tuple[Weight, ...]
    down: tuple[Weight, ...]
    attention_norm: torch.Tensor
    mlp_norm: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    shape: AttentionShape
    rope: Rope | None = None
    qk_norm: QkNorm | None = None
    qkv_bias: torch.Tensor | None = None
    o_bias: torch.Tensor | None = None
    kv_scales: tuple[torch.Tensor, torch.Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation per op. Signatures are those of `inferd_kernels.reference`, which defines each op's result.

    prepare_weight  (weight) -> weight           repack once at load for `linear` and `embedding` of this backend
    linear          (x [T,K], weight [N,K], bias [N] | None) -> [T,N]
    embedding       (ids [T] int64, weight [V,E], dtype) -> [T,E]
    rms_norm        (x [T,E], weight [E], eps) -> [T,E]
    add_rms_norm    (x [T,E], residual [T,E], weight [E], eps) -> (normed [T,E], residual + x [T,E])
    rope_kv_write   (qkv [T,(Hq+2Hk)D], k_cache, v_cache, batch, rope | None, shape, qk_norm | None, kv_scales | None)
                    -> q [T,Hq,D]
    paged_attention (q [T,Hq,D], k_cache, v_cache, batch, shape, kv_scales | None) -> [T,Hq,D]
                    kv_scales: two [blocks,P,Hk] float32, K's and V's, of caches in fp8 e4m3 or int8
    silu_mul        (gate_up [T,2I]) -> [T,I]
    sample          (logits [S,V], batch) -> ids [S] int64
    copy_blocks     (cache, sources, destinations) copies whole KV blocks in place, all at the same time
    penalize        (logits [S,V], rows [R], tokens [R,L], counts [R,L], repetition [R], presence [R], frequency [R])
                    edits rows in place
    mask_tokens     (logits [S,V], rows [R], bits [R, ceil(V/32)] int32) sets refused tokens of rows to -inf in place
    add_layer_norm  (x [T,E], residual [T,E] | None, weight [E], bias [E], eps) -> [T,E]
    activate        (x [T,I], name) -> [T,I]; name is gelu, gelu_tanh or relu
    self_attention  (qkv [T,(Hq+2Hk)D], cu_seqlens [B+1] int32, shape) -> [T,Hq,D], every token sees its whole sequence
    decoder_stack   (layers: [DecoderLayer], eps) -> run, run(hidden [T,E] float32, batch) -> [T,E]: all layers in one
                    call, embeddings in, the residual stream before the final norm out, over hidden where it is
                    contiguous; None where no backend has it
    pack_rows       (rows: WeightRows, dtype) -> weight: prepare_weight of a matrix that comes in blocks, with no more
                    than a block in memory beside the result; None where prepare_weight has no layout of its own
    key_cache       (shape, dtype, device) -> k_cache, not initialized, in the order of memory that this backend reads
                    fastest; None where that is torch.empty's. Strides are no part of an op's contract: each takes both
    """

    backends: Mapping[str, str]
    cache_dtypes: tuple[torch.dtype, ...]  # of KV caches that rope_kv_write and paged_attention take
    quantizations: tuple[str, ...]  # of weights at load, that linear and embedding compute on: q4, q8, fp8
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
    penalize: Callable[..., None]
    mask_tokens: Callable[..., None]
    add_layer_norm: Callable[..., torch.Tensor]
    activate: Callable[..., torch.Tensor]
    self_attention: Callable[..., torch.Tensor]
    rotate: Callable[..., torch.Tensor]
    write_latents: Callable[..., None]
    latent_attention: Callable[..., torch.Tensor]
    decoder_stack: Callable[..., Callable[..., torch.Tensor]] | None = None
    pack_rows: Callable[..., Weight] | None = None
    key_cache: Callable[..., torch.Tensor] | None = None


# Torch computes these on every backend.
ENCODER_OP_NAMES = ("add_layer_norm", "activate", "self_attention", "rotate", "write_latents", "latent_attention")
# Edits of a whole step's logits at once; a sampler on the CPU edits row by row.
LOGITS_OP_NAMES = ("penalize", "mask_tokens")
NO_OPS = (
    *("backends", "cache_dtypes", "quantizations", "decoder_stack", "pack_rows", "key_cache"),
    *ENCODER_OP_NAMES,
    *LOGITS_OP_NAMES,
)
OP_NAMES = tuple(field.name for field in fields(Ops) if field.name not in NO_OPS)


BACKENDS = ("auto", "native", "triton", "varlen", "reference")


def load_ops(device: str = "cpu", backend: str = "auto", threads: int | None = None) -> Ops:
    """Choose the implementation of every op for `device`.

    backend: "auto" takes the fastest available one per op, "native" the compiled CPU ops, "triton" the GPU kernels,
    "reference" torch alone, "varlen" the GPU kernels with torch's FlashAttention in place of theirs.
    threads: of the native CPU ops, default the processors this process may use.
    Raises ValueError when `backend` is unknown or cannot run on `device`.
    """
    from inferd_kernels import reference

    if backend not in BACKENDS:
        raise ValueError(f"kernel backend {backend!r} is not one of {', '.join(BACKENDS)}")
    names = (*OP_NAMES, *LOGITS_OP_NAMES, *ENCODER_OP_NAMES)
    chosen = {name: ("reference", getattr(reference, name)) for name in names}
    decoder_stack = pack_rows = key_cache = None
    cache_dtypes: tuple[torch.dtype, ...] = reference.CACHE_DTYPES
    quantizations: tuple[str, ...] = reference.QUANTIZATIONS
    if backend == "native" or (backend == "auto" and device == "cpu"):
        from inferd_kernels.cpu import load_native

        if native := load_native(device, threads, required=backend == "native"):
            chosen |= {name: (native.label, getattr(native, name)) for name in OP_NAMES}
            decoder_stack, pack_rows, key_cache = native.decoder_stack, native.pack_rows, native.key_cache
            cache_dtypes, quantizations = native.cache_dtypes, native.quantizations
    on_gpu = device.startswith("cuda") and find_spec("triton") is not None
    if backend == "varlen":
        chosen |= _varlen_ops(device)
        cache_dtypes, quantizations = _varlen_cache_dtypes(), _triton_quantizations()
    elif backend == "triton" or (backend == "auto" and on_gpu):
        chosen |= _triton_ops(device)
        cache_dtypes, quantizations = _triton_cache_dtypes(), _triton_quantizations()
    return Ops(
        backends=MappingProxyType({name: label for name, (label, _) in chosen.items()}),
        cache_dtypes=cache_dtypes,
        quantizations=quantizations,
        **{name: function for name, (_, function) in chosen.items()},
        decoder_stack=decoder_stack,
        pack_rows=pack_rows,
        key_cache=key_cache,
    )


def _triton_ops(device: str) -> dict[str, tuple[str, Callable[..., Any]]]:
    """Every op in Triton, for CUDA and ROCm; on the CPU only under Triton's interpreter (TRITON_INTERPRET=1)."""
    if not device.startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"kernel backend 'triton' needs a cuda device, not {device!r}")
    if find_spec("triton") is None:
        raise ValueError("kernel backend 'triton' needs the package triton (extra: cuda)")
    from inferd_kernels.triton import backend

    return {name: ("triton", getattr(backend, name)) for name in (*OP_NAMES, *LOGITS_OP_NAMES)}


def _triton_cache_dtypes() -> tuple[torch.dtype, ...]:
    from inferd_kernels.triton import backend

    return backend.cache_dtypes()


def _triton_quantizations() -> tuple[str, ...]:
    from inferd_kernels.triton import backend

    return backend.quantizations()


def _varlen_cache_dtypes() -> tuple[torch.dtype, ...]:
    from inferd_kernels import varlen

    return varlen.CACHE_DTYPES


def _varlen_ops(device: str) -> dict[str, tuple[str, Callable[..., Any]]]:
    """The Triton ops, with torch's FlashAttention in place of their attention."""
    if not device.startswith("cuda"):
        raise ValueError(f"kernel backend 'varlen' needs a cuda device, not {device!r}")
    from inferd_kernels import varlen

    varlen.check_torch()
    return {**_triton_ops(device), "paged_attention": ("varlen", varlen.paged_attention)}
