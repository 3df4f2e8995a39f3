"""Multi-head latent attention (DeepSeek-AI 2024): keys and values of all heads are linear functions of one small
vector per token, and only that vector is cached. T packed tokens, E hidden size, H heads, R size of the latent, D_r
rotary dimensions.

The projection from latent to keys is absorbed into the queries and the one to values into what follows the attention,
so that attention is over the latents themselves: one KV head of size R + D_r whose values are the first R of its keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inferd.blocks.caches import LatentNeed
from inferd.blocks.norm import Norm, NormSpec
from inferd.blocks.parameters import Parameter, Share, scaled
from inferd.blocks.rope import RopeSpec

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import LatentCache, Ops, PagedBatch, Rope

    from inferd.blocks.linear import Linear
    from inferd.blocks.source import BlockSource


@dataclass(frozen=True, slots=True)
class LatentAttentionSpec:
    """rank: size of the latent. Each head has plain_dim dimensions without position and rope.rotary_dim with; values
    have value_dim. query_rank: queries come through a vector of that size too; 0: straight from the stream."""

    num_heads: int
    rank: int
    plain_dim: int
    value_dim: int
    scale: float
    rope: RopeSpec
    norm: NormSpec
    query_rank: int = 0
    has_bias: bool = False

    @property
    def head_dim(self) -> int:
        return self.plain_dim + self.rope.rotary_dim

    def parameters(self, hidden_size: int, share: Share) -> Iterator[Parameter]:
        heads, rotary = share.heads(self.num_heads, self.num_heads).q, self.rope.rotary_dim
        turned = rotary if self.rope.interleaved else 0
        q_size, q_rows = self.num_heads * self.head_dim, scaled(heads, self.head_dim)
        if self.query_rank:
            yield Parameter("q_a.weight", (self.query_rank, hidden_size))
            if self.has_bias:
                yield Parameter("q_a.bias", (self.query_rank,))
            yield from self.norm.parameters("q_norm", self.query_rank)
            yield Parameter(
                "q_b.weight", (q_size, self.query_rank), q_rows, None, self.head_dim, turned, self.plain_dim
            )
        else:
            yield Parameter("q.weight", (q_size, hidden_size), q_rows, None, self.head_dim, turned, self.plain_dim)
        size = self.rank + rotary
        yield Parameter("kv_a.weight", (size, hidden_size), None, None, size, turned, self.rank)
        if self.has_bias:
            yield Parameter("kv_a.bias", (size,), None, None, size, turned, self.rank)
        yield from self.norm.parameters("kv_norm", self.rank)
        width = self.plain_dim + self.value_dim
        yield Parameter("kv_b.weight", (self.num_heads * width, self.rank), scaled(heads, width))
        columns = scaled(heads, self.value_dim)
        yield Parameter("o.weight", (hidden_size, self.num_heads * self.value_dim), None, columns)
        if self.has_bias:
            yield Parameter("o.bias", (hidden_size,))

    def cache_need(self, share: Share) -> LatentNeed:
        return LatentNeed(self.rank + self.rope.rotary_dim)

    def widest(self, share: Share) -> int:
        """Queries in both forms, and what is attended."""
        heads = len(share.heads(self.num_heads, self.num_heads).q)
        return heads * (2 * self.rank + 2 * self.head_dim + self.value_dim) + 2 * self.query_rank + 2 * self.rank

    def load(self, source: BlockSource, share: Share) -> LatentAttention:
        heads, query = len(share.heads(self.num_heads, self.num_heads).q), self.query_rank
        expand = source.floats("kv_b.weight").unflatten(0, (heads, self.plain_dim + self.value_dim))
        return LatentAttention(
            spec=self,
            q_a=source.linear("q_a") if query else None,
            q_norm=Norm.load(self.norm, "q_norm", query, source) if query else None,
            q=source.linear("q_b" if query else "q"),
            kv_a=source.linear("kv_a"),
            kv_norm=Norm.load(self.norm, "kv_norm", self.rank, source),
            to_keys=expand[:, : self.plain_dim].contiguous(),
            to_values=expand[:, self.plain_dim :].transpose(1, 2).contiguous(),
            o=source.row_parallel("o"),
            rope=source.rope(self.rope),
        )


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """The weights of one rank, and the forward pass. H counts this rank's heads."""

    spec: LatentAttentionSpec
    q_a: Linear | None
    q_norm: Norm | None
    q: Linear
    kv_a: Linear
    kv_norm: Norm
    to_keys: torch.Tensor  # [H, plain_dim, R]
    to_values: torch.Tensor  # [H, R, value_dim]
    o: Linear
    rope: Rope

    def __call__(self, ops: Ops, x: torch.Tensor, cache: LatentCache, batch: PagedBatch) -> torch.Tensor:
        """x [T, E] -> [T, E]. The latents of this step are written into `cache`."""
        spec = self.spec
        latent = self.kv_a(ops, x)
        row = latent.new_empty(latent.shape)
        row[:, : spec.rank] = self.kv_norm(ops, latent[:, : spec.rank].contiguous())
        row[:, spec.rank :] = ops.rotate(latent[:, None, spec.rank :], self.rope, batch.positions)[:, 0]
        ops.write_latents(row, cache, batch)
        attended = ops.latent_attention(self._queries(ops, x, batch), cache, batch, spec.rank, spec.scale)
        values = attended.transpose(0, 1) @ self.to_values
        return self.o(ops, values.transpose(0, 1).flatten(1))

    def _queries(self, ops: Ops, x: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """[T, H, R + D_r]: what is compared with the cached vectors."""
        spec = self.spec
        if self.q_a is not None and self.q_norm is not None:
            x = self.q_norm(ops, self.q_a(ops, x))
        q = self.q(ops, x).unflatten(1, (-1, spec.head_dim))
        whole = q.new_empty((*q.shape[:2], spec.rank + spec.rope.rotary_dim))
        whole[..., : spec.rank] = (q[..., : spec.plain_dim].transpose(0, 1) @ self.to_keys).transpose(0, 1)
        whole[..., spec.rank :] = ops.rotate(q[..., spec.plain_dim :], self.rope, batch.positions)
        return whole
