"""What a layer keeps of a sequence between steps, in pages of tokens: how much memory that is, and how it is
allocated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from inferd.cache_groups import FULL

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
MAX_GROUPS = 8  # each has block tables of its own, which the scheduler fills and a step reads


@dataclass(frozen=True, slots=True)
class LayerGroups:
    """The windows of a model's cache groups, and which group each layer of a stage belongs to."""

    windows: tuple[int, ...]
    of_layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a layer has its cache: its group, and which of a block's layers it is."""

    group: int
    layer: int


def group_windows(needs: Sequence[CacheNeed | None], context: int) -> tuple[int, ...]:
    """The windows of a model's cache groups, 0 for none. needs: of all its layers.

    Groups take their blocks from one pool, so all have as many layers: as many as look back the same number of tokens,
    where those are fewest. The others are several groups. Layers of unlike shape are one group without a window.
    """
    paged = [need for need in needs if isinstance(need, PagedNeed)]
    if len({(need.kv_heads, need.head_dim) for need in paged}) != 1 or len(paged) < len(needs):
        return FULL
    counts = Counter(need.window if need.window < context else 0 for need in paged)
    size = min(counts.values())
    while sum(-(-count // size) for count in counts.values()) > MAX_GROUPS:
        size += 1
    return tuple(window for window in sorted(counts) for _ in range(-(-counts[window] // size)))


def place_layers(needs: Sequence[CacheNeed | None], windows: tuple[int, ...]) -> list[Place]:
    """Of the layers of one stage of a model with these groups; those of a window are dealt out to its groups."""
    dealt: Counter[int] = Counter()
    places = []
    for need in needs:
        window = need.window if isinstance(need, PagedNeed) and need.window in windows else 0
        groups = [group for group, each in enumerate(windows) if each == window]
        layer, turn = divmod(dealt[window], len(groups))
        dealt[window] += 1
        places.append(Place(groups[turn], layer))
    return places


def block_needs(needs: Sequence[CacheNeed | None], windows: tuple[int, ...]) -> list[CacheNeed | None]:
    """What a block holds of these layers of one stage: the needs of its layers, by Place.layer."""
    return list({place.layer: need for need, place in zip(needs, place_layers(needs, windows), strict=True)}.values())


Cache: TypeAlias = "KVCache | LatentCache"
