"""The KV manager of a model in which some layers, or all, look back a limited number of tokens."""

from __future__ import annotations

from collections.abc import Iterable

from inferd.cache_groups import FULL, CacheGroups
from inferd.kv.eviction import Eviction
from inferd.kv.manager import Growth, KVManager
from inferd.kv.pool import AuditError
from inferd.sequence import FREED, Sequence
from inferd.step import BlockCopy


def create_manager(groups: CacheGroups, num_blocks: int, prefix_caching: bool) -> KVManager:
    if groups.windows == FULL:
        return KVManager(num_blocks, groups.block_size, prefix_caching)
    return WindowedKVManager(num_blocks, groups, prefix_caching)


class WindowedKVManager(KVManager):
    """A sequence's table is rows of one block for each group. Before it gets another row, a sequence gives back the
    blocks that a window has passed.

    A prompt gets its rows as it is computed, because a group with a window never holds all of them at once. So that
    a prompt which was admitted can be computed to its end, admit() takes what it needs as spare blocks: all that a
    group without a window will need, and as many as one with a window holds at once. While it lacks rows, a sequence
    keeps what its windows pass. It falls short only where it shared what they passed; then others make way.
    """

    def __init__(
        self, num_blocks: int, groups: CacheGroups, prefix_caching: bool = True, hash_key: bytes | None = None
    ) -> None:
        super().__init__(num_blocks, groups.block_size, prefix_caching, hash_key)
        self.row = len(groups.windows)
        self._groups = groups
        self._windows = [(group, window) for group, window in enumerate(groups.windows) if window]

    def can_grow(self, sequence: Sequence, position: int, eviction: Eviction) -> bool:
        shared = self._shared(sequence, position // self.block_size, eviction)
        lacking = self.row - len(sequence.spare_block_ids) if shared is None else len(shared)
        return lacking <= self.pool.num_available + eviction.num_freed

    def grow(self, sequence: Sequence, position: int) -> Growth | None:
        index, offset = divmod(position, self.block_size)
        shared = self._shared(sequence, index)
        assert shared is None or offset, f"sequence {sequence.seq_id} would write a row that it did not fill so far"
        if shared is None:
            fresh = self.extend(sequence, position + 1)
            return None if fresh is None else Growth(fresh)
        if len(shared) > self.pool.num_available:
            return None
        copies = [self._unshare(sequence, place) for place in shared]
        sequence.num_slots = len(sequence.block_ids) // self.row * self.block_size
        return Growth([], copies)

    def extend(self, sequence: Sequence, num_tokens: int) -> list[int] | None:
        self._slide(sequence)
        spare = sequence.spare_block_ids
        lacking = self.blocks_for(num_tokens) * self.row - len(sequence.block_ids)
        if lacking <= 0:
            return []
        if lacking > len(spare) + self.pool.num_available:
            return None
        fresh = [spare.pop() if spare else self.pool.allocate() for _ in range(lacking)]
        sequence.block_ids += fresh
        sequence.num_slots = len(sequence.block_ids) // self.row * self.block_size
        most = self._groups.blocks_of_rows(self._missing_rows(sequence))
        while len(spare) > most:
            self.pool.release(spare.pop())
        return fresh

    def publish(self, sequence: Sequence) -> None:
        salt = sequence.request.cache.salt
        while sequence.publish_at <= sequence.num_computed_tokens:
            index = sequence.publish_at // self.block_size - 1
            name = self._hasher.block_hash(sequence, index)
            for group, block in enumerate(sequence.block_ids[index * self.row : (index + 1) * self.row]):
                if block != FREED:
                    self.pool.publish(block, group_name(name, group), salt)
            sequence.publish_at += self.block_size

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Also: each sequence holds what its next query reads."""
        sequences = list(sequences)
        super().check(sequences)
        for sequence in sequences:
            if len(sequence.block_ids) % self.row:
                raise AuditError(
                    f"sequence {sequence.seq_id} has {len(sequence.block_ids)} blocks in rows of {self.row}"
                )
            for group, window in enumerate(self._groups.windows):
                first = self._groups.first_row(window, sequence.num_computed_tokens)
                if FREED in sequence.block_ids[first * self.row + group :: self.row]:
                    raise AuditError(f"sequence {sequence.seq_id} lacks a block in the window of group {group}")

    def _slide(self, sequence: Sequence) -> None:
        """Give back the blocks that the windows have passed; as many are kept as spare ones as may be needed."""
        blocks, available = sequence.block_ids, self.pool.num_available
        for group, window in self._windows:
            place = (self._groups.first_row(window, sequence.num_computed_tokens) - 1) * self.row + group
            while place >= 0 and blocks[place] != FREED:  # before a freed block all are
                self.pool.release(blocks[place])
                blocks[place] = FREED
                place -= self.row
        spare = sequence.spare_block_ids
        gained = len(spare) + self.pool.num_available - available
        for _ in range(min(gained, self._groups.blocks_of_rows(self._missing_rows(sequence))) - len(spare)):
            spare.append(self.pool.allocate())

    def _missing_rows(self, sequence: Sequence) -> int:
        """Rows that the known tokens still need."""
        return max(self.blocks_for(sequence.num_tokens) - len(sequence.block_ids) // self.row, 0)

    def _shared(self, sequence: Sequence, index: int, eviction: Eviction | None = None) -> list[int] | None:
        """Places of the blocks of a row that others hold as well; None for a row that is not there yet."""
        first = index * self.row
        if first == len(sequence.block_ids):
            return None
        places = range(first, first + self.row)
        return [place for place in places if self._is_shared(sequence.block_ids[place], eviction)]

    def _unshare(self, sequence: Sequence, place: int) -> BlockCopy:
        source, fresh = sequence.block_ids[place], self.pool.allocate()
        self._give_up_source(source)
        sequence.block_ids[place] = fresh
        return BlockCopy(sequence.seq_id, place, source, fresh)

    def _furnish(self, sequence: Sequence, hits: list[int]) -> None:
        num_spare = self._num_spare(sequence, hits)
        for block in hits:
            if block != FREED:
                self.pool.take(block)
        sequence.block_ids = hits
        sequence.num_slots = sequence.num_computed_tokens
        sequence.spare_block_ids = [self.pool.allocate() for _ in range(num_spare)]

    def _num_taken(self, sequence: Sequence, hits: list[int]) -> int:
        return self._num_spare(sequence, hits) + self._num_idle(hits)

    def _num_spare(self, sequence: Sequence, hits: list[int]) -> int:
        """Blocks that the rows after the cached prefix will take. Hits that nobody else holds are part of what a group
        holds at once; others are not, for giving them back frees nothing."""
        rows, total = self.blocks_for(sequence.num_tokens) - len(hits) // self.row, 0
        for group, window in enumerate(self._groups.windows):
            own = self._num_idle(hits[group :: self.row]) if window else 0
            total += min(rows, self._groups.most_rows(window) - own)
        return total

    def _num_idle(self, hits: list[int]) -> int:
        return sum(1 for block in hits if block != FREED and not self.pool.refs(block))

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """The rows of the longest prefix after which every group has what the next query reads."""
        if not self._reads(sequence):
            return []
        hits: list[int] = []
        runs = [0] * self.row  # how many rows are cached, from the last one looked up backwards
        best = 0
        for end in range(1, (sequence.num_tokens - 1) // self.block_size + 1):
            name = self._hasher.block_hash(sequence, end - 1)
            for group in range(self.row):
                block = self.pool.lookup(group_name(name, group))
                runs[group] = 0 if block is None else runs[group] + 1
                hits.append(FREED if block is None else block)
            missing = [end - run for run in runs]  # the rows before these are not all cached
            if any(count and not window for count, window in zip(missing, self._groups.windows, strict=True)):
                break
            if all(count <= first for count, first in zip(missing, self._first_rows(end), strict=True)):
                best = end
        return self._needed(hits[: best * self.row], self._first_rows(best))

    def _first_rows(self, rows: int) -> list[int]:
        """Of each group, the first row that the query after `rows` rows reads."""
        return [self._groups.first_row(window, rows * self.block_size) for window in self._groups.windows]

    def _needed(self, hits: list[int], firsts: list[int]) -> list[int]:
        """The hits, without those before the windows."""
        for group, first in enumerate(firsts):
            hits[group : first * self.row : self.row] = [FREED] * first
        return hits


def group_name(name: bytes, group: int) -> bytes:
    """Of a group's block among those of the same tokens."""
    return name + bytes((group,)) if group else name
