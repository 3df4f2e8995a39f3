"""What a layer keeps of a sequence between steps. Frozen data, without torch: the memory itself belongs to the
executor."""

from __future__ import annotations

from dataclasses import dataclass

SCALE_BYTES = 4  # float32


@dataclass(frozen=True, slots=True)
class PagedNeed:
    """Keys and values of every token, in pages: kv_heads heads of head_dim values each, on this rank.

    window: tokens that are looked back at, 0 for all.
    """

    kv_heads: int
    head_dim: int
    window: int = 0

    def block_bytes(self, page: int, itemsize: int) -> int:
        """Keys and values of a page of tokens; those of one byte have a scale per token and head."""
        per_head = self.head_dim * itemsize + (SCALE_BYTES if itemsize == 1 else 0)
        return 2 * page * self.kv_heads * per_head
