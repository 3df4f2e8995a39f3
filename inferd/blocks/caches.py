"""What a layer keeps of a sequence between steps, in pages of tokens: how much memory that is, and how it is
allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import KVCache, LatentCache, Ops

SCALE_BYTES = 4  # float32


@dataclass(frozen=True, slots=True)
class PagedNeed:
    """Keys and values of every token, in pages: kv_heads heads of head_dim values each, on this rank.

    window: tokens that are looked back at, 0 for all.
    """

    kv_heads: int
    head_dim: int
    window: int = 0
    attention_op: ClassVar[str] = "paged_attention"  # of Ops

    def block_bytes(self, page: int, itemsize: int) -> int:
        """Keys and values of a page of tokens; those of one byte have a scale per token and head."""
        per_head = self.head_dim * itemsize + (SCALE_BYTES if itemsize == 1 else 0)
        return 2 * page * self.kv_heads * per_head

    def allocate(
        self,
        pages: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
    ) -> KVCache:
        """Of pages = (blocks, tokens per block). Memory is taken when it is first written."""
        import torch
        from inferd_kernels.ops import KVCache

        shape = (*pages, self.kv_heads, self.head_dim)
        k = ops.key_cache(shape, dtype, device)
        v = torch.empty(shape, dtype=dtype, device=device)
        if dtype.itemsize > 1:
            return KVCache(k, v)
        k_scale, v_scale = (torch.empty(shape[:3], dtype=torch.float32, device=device) for _ in range(2))
        return KVCache(k, v, (k_scale, v_scale))


@dataclass(frozen=True, slots=True)
class LatentNeed:
    """One vector of `size` values of every token, from which keys and values of all heads are made."""

    size: int
    attention_op: ClassVar[str] = "latent_attention"

    def block_bytes(self, page: int, itemsize: int) -> int:
        return page * self.size * itemsize

    def allocate(
        self,
        pages: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        ops: Ops,
    ) -> LatentCache:
        """As PagedNeed.allocate. Raises ValueError for values of 8 bits, which latents are not kept in."""
        import torch
        from inferd_kernels.ops import LatentCache

        if dtype.itemsize == 1:
            raise ValueError("a model with latent attention keeps its cache in 16 or 32 bits, not in 8")
        return LatentCache(torch.empty((*pages, self.size), dtype=dtype, device=device))


CacheNeed: TypeAlias = PagedNeed | LatentNeed
Cache: TypeAlias = "KVCache | LatentCache"
