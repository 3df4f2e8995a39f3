"""How the KV cache of a model is grouped, in numbers. Loads no torch.

Layers of equal need form a group: those that look at everything before them, and those that look back `window` tokens.
All groups have their blocks in one pool, because a block has the same size in each: a number of layers, times the keys
and values of block_size tokens. A sequence has a table for each group. The tables grow together, so they are kept as
one list of rows: block_size tokens take a row, which is one block of each group.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import dataclass

FULL = (0,)  # the windows of a model with one group, whose layers look at everything


@dataclass(frozen=True, slots=True)
class CacheGroups:
    """windows: of each group, in tokens, the query's own included; 0 for a group that looks at everything.

    chunk: the most tokens of a sequence that one step computes.
    """

    windows: tuple[int, ...]
    block_size: int
    chunk: int

    def first_row(self, window: int, position: int) -> int:
        """The first row that a query at `position` reads in a group. Later queries read none before it."""
        return max(position - window + 1, 0) // self.block_size if window else 0

    def most_rows(self, window: int) -> int:
        """How many rows of a group a sequence holds at once, at most: those of the window and of a step's tokens."""
        return (window + self.chunk - 2) // self.block_size + 2 if window else sys.maxsize

    def blocks_of_rows(self, rows: int) -> int:
        """The most blocks that a sequence holds on its way to `rows` rows."""
        return sum(min(rows, self.most_rows(window)) for window in self.windows)

    def blocks_for(self, num_tokens: int) -> int:
        """The most blocks that a sequence holds on its way to num_tokens tokens."""
        return self.blocks_of_rows(-(-num_tokens // self.block_size))

    def longest(self, num_blocks: int) -> int:
        """The most tokens of a sequence that has a pool of num_blocks for itself."""
        if self.blocks_of_rows(sys.maxsize) <= num_blocks:
            return sys.maxsize  # every group has a window
        rows = bisect_right(range(1, num_blocks + 1), num_blocks, key=self.blocks_of_rows)
        return rows * self.block_size
