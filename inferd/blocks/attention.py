"""Grouped-query attention over a paged cache, or over whole sequences in both directions. T packed tokens, E hidden
size, Hq and Hk query and KV heads, D head size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from inferd.blocks.caches import PagedNeed
from inferd.blocks.parameters import HeadShare, Parameter, Share, scaled
from inferd.blocks.rope import RopeSpec

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import Attention as Operands
    from inferd_kernels.ops import AttentionShape, KVCache, Ops, PagedBatch, QkNorm, Rope

    from inferd.blocks.linear import Linear
    from inferd.blocks.source import BlockSource


@dataclass(frozen=True, slots=True)
class QkNormSpec:
    """An RMSNorm of queries and keys before they are rotated.

    over         each head by itself (Qwen3), or the whole vector of all heads at once (OLMo 2, MiniMax)
    offset       added to the stored weight, as in NormSpec
    has_weight   False for a norm that only scales
    """

    eps: float
    over: Literal["head", "vector"] = "head"
    offset: float = 0.0
    has_weight: bool = True


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """Attention of one layer.

    scale        of the products of queries and keys, before the softmax
    window       tokens that a query sees, its own included; 0 for all before it
    softcap      cap * tanh(score / cap) before the softmax; 0 for none
    is_causal    False: every token sees its whole sequence, and nothing is cached (encoders)
    has_sinks    one learned logit per query head joins the softmax and carries no value (gpt-oss)
    has_gate     the query projection also gives a gate per value: the output is multiplied with its sigmoid
                 (Qwen3-Next). Its rows are then query | gate, head by head.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    rope: RopeSpec | None = None
    window: int = 0
    softcap: float = 0.0
    is_causal: bool = True
    qk_norm: QkNormSpec | None = None
    has_sinks: bool = False
    has_gate: bool = False
    qkv_bias: bool = False
    o_bias: bool = False

    def parameters(self, hidden_size: int, share: Share) -> Iterator[Parameter]:
        heads, dim = share.heads(self.num_heads, self.num_kv_heads), self.head_dim
        rotary = self.rope.rotary_dim if self.rope and self.rope.interleaved else 0
        q_dim = 2 * dim if self.has_gate else dim
        sizes = (("q", self.num_heads, heads.q, q_dim), ("k", self.num_kv_heads, heads.kv, dim))
        for name, count, held, width in (*sizes, ("v", self.num_kv_heads, heads.kv, dim)):
            rows = scaled(held, width)
            turned = 0 if name == "v" else rotary
            yield Parameter(f"{name}.weight", (count * width, hidden_size), rows, None, width, turned)
            if self.qkv_bias:
                yield Parameter(f"{name}.bias", (count * width,), rows, None, width, turned)
        yield Parameter("o.weight", (hidden_size, self.num_heads * dim), None, scaled(heads.q, dim))
        if self.o_bias:
            yield Parameter("o.bias", (hidden_size,))
        if self.has_sinks:
            yield Parameter("sinks", (self.num_heads,), heads.q)
        yield from self._norm_parameters(heads, rotary)

    def _norm_parameters(self, heads: HeadShare, rotary: int) -> Iterator[Parameter]:
        norm, dim = self.qk_norm, self.head_dim
        if norm is None or not norm.has_weight:
            return
        for name, count, held in (("q_norm", self.num_heads, heads.q), ("k_norm", self.num_kv_heads, heads.kv)):
            if norm.over == "head":
                yield Parameter(f"{name}.weight", (dim,), None, None, dim, rotary)
            else:
                yield Parameter(f"{name}.weight", (count * dim,), scaled(held, dim), None, dim, rotary)

    def cache_need(self, share: Share) -> PagedNeed | None:
        if not self.is_causal:
            return None
        return PagedNeed(len(share.heads(self.num_heads, self.num_kv_heads).kv), self.head_dim, self.window)

    def widest(self, share: Share) -> int:
        """Values per token that the block holds at once."""
        heads = share.heads(self.num_heads, self.num_kv_heads)
        q_dim = (2 if self.has_gate else 1) * self.head_dim
        return 2 * (len(heads.q) * q_dim + 2 * len(heads.kv) * self.head_dim)

    def load(self, source: BlockSource, share: Share) -> Attention:
        from inferd_kernels.ops import AttentionShape

        heads = share.heads(self.num_heads, self.num_kv_heads)
        return Attention(
            qkv=source.linear("q", "k", "v"),
            o=source.row_parallel("o"),
            shape=AttentionShape(
                num_heads=len(heads.q),
                num_kv_heads=len(heads.kv),
                head_dim=self.head_dim,
                scale=self.scale,
                window=self.window,
                softcap=self.softcap,
            ),
            rope=None if self.rope is None else source.rope(self.rope),
            qk_norm=self._load_norm(source, heads),
            norm_over=self.qk_norm.over if self.qk_norm else "head",
            sinks=source.vector("sinks").float() if self.has_sinks else None,
            has_gate=self.has_gate,
        )

    def _load_norm(self, source: BlockSource, heads: HeadShare) -> QkNorm | None:
        from inferd_kernels.ops import QkNorm

        norm = self.qk_norm
        if norm is None:
            return None
        if norm.has_weight:
            weights = [source.vector(f"{name}.weight") + norm.offset for name in ("q_norm", "k_norm")]
        else:
            counts = (1, 1) if norm.over == "head" else (len(heads.q), len(heads.kv))
            weights = [source.filled(count * self.head_dim, 1.0) for count in counts]
        return QkNorm(weights[0], weights[1], norm.eps)


@dataclass(frozen=True, slots=True)
class Attention:
    """The weights of one rank, and the forward pass. shape counts this rank's heads."""

    qkv: Linear
    o: Linear
    shape: AttentionShape
    rope: Rope | None
    qk_norm: QkNorm | None
    norm_over: Literal["head", "vector"]
    sinks: torch.Tensor | None  # [Hq] float32
    has_gate: bool

    def __call__(self, ops: Ops, x: torch.Tensor, cache: KVCache | None, batch: PagedBatch) -> torch.Tensor:
        """x [T, E] -> [T, E]. The keys and values of this step are written into `cache`."""
        qkv, gate = self._projected(ops, x)
        if cache is None:
            attended = ops.self_attention(qkv, batch.cu_seqlens, self.shape).flatten(1)
        else:
            attended = self._over_cache(ops, qkv, cache, batch)
        if gate is not None:
            attended = attended * gate.sigmoid()
        return self.o(ops, attended)

    def _over_cache(self, ops: Ops, qkv: torch.Tensor, cache: KVCache, batch: PagedBatch) -> torch.Tensor:
        operands = self.over(cache)
        return ops.paged_attention(ops.rope_kv_write(qkv, operands, batch), operands, batch).flatten(1)

    def over(self, cache: KVCache) -> Operands:
        """What the ops need to know of this block to attend over `cache`."""
        from inferd_kernels.ops import Attention as Operands

        norm = self.qk_norm if self.norm_over == "head" else None
        return Operands(self.shape, cache, self.rope, norm, self.sinks)

    def _projected(self, ops: Ops, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(q | k | v [T, (Hq + 2 Hk) D], gate [T, Hq D] where there is one)."""
        qkv, gate, shape = self.qkv(ops, x), None, self.shape
        q_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        if self.has_gate:
            both = qkv[:, : 2 * q_size].unflatten(1, (shape.num_heads, 2, shape.head_dim))
            gate = both[:, :, 1].flatten(1)
            whole = qkv.new_empty((len(qkv), q_size + 2 * kv_size))
            whole[:, :q_size] = both[:, :, 0].flatten(1)
            whole[:, q_size:] = qkv[:, 2 * q_size :]
            qkv = whole
        if self.qk_norm is not None and self.norm_over == "vector":
            norm, k_end = self.qk_norm, q_size + kv_size
            whole = qkv.clone()
            whole[:, :q_size] = ops.rms_norm(qkv[:, :q_size].contiguous(), norm.q_weight, norm.eps)
            whole[:, q_size:k_end] = ops.rms_norm(qkv[:, q_size:k_end].contiguous(), norm.k_weight, norm.eps)
            qkv = whole
        return qkv, gate
