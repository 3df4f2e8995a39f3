"""Eviction: what the pool would have if some sequences gave up their blocks. Asked before anybody is preempted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from inferd.kv.pool import BlockPool
from inferd.sequence import Sequence


class Eviction:
    """Counts, and changes nothing. A block becomes available with the last of its references: others may share it."""

    def __init__(self, pool: BlockPool, wanted: Collection[int] = ()) -> None:
        """wanted: blocks that are of no use when they become available, because whoever needs room holds them then."""
        self.num_freed = 0
        self._pool = pool
        self._wanted = wanted
        self._given_up: Counter[int] = Counter()

    def add(self, sequence: Sequence) -> None:
        """One more sequence that gives up its blocks."""
        for block in sequence.held_block_ids:
            self._given_up[block] += 1
            if self.refs(block) == 0 and block not in self._wanted:
                self.num_freed += 1

    def refs(self, block: int) -> int:
        """References that are left to a block."""
        return self._pool.refs(block) - self._given_up[block]
