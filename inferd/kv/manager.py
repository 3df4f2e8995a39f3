"""KVManager gives sequences the blocks for their tokens: from the prefix cache, fresh, shared between choices, copied
before a shared one is written. It knows block ids and token ids, and nothing of tensors or of scheduling order."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from inferd.kv.eviction import Eviction
from inferd.kv.pool import BlockPool
from inferd.kv.prefix import BlockHasher
from inferd.sequence import NEVER, Sequence
from inferd.step import BlockCopy


class Growth(NamedTuple):
    """What one more position took: a fresh row at the table's end, or copies of shared blocks, or nothing."""

    new_block_ids: list[int]
    copies: Collection[BlockCopy] = ()


class KVManager:
    """Blocks of block_size tokens, for a model with one cache group whose layers look at everything. A sequence holds
    either no block or the blocks of all its computed tokens; a running one, those of all its known tokens."""

    row = 1  # blocks that block_size more tokens take

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool = True, hash_key: bytes | None = None
    ) -> None:
        self.pool = BlockPool(num_blocks)
        self.block_size = block_size
        self.prefix_queries = 0  # tokens looked up at first admissions
        self.prefix_hits = 0  # tokens found there
        self._sources: set[int] = set()  # of the copies in the plan that is being made
        self._prefix_caching = prefix_caching
        self._hasher = BlockHasher(block_size, hash_key)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, headroom: int) -> bool:
        """Give a sequence what its known tokens take; its cached prefix counts as computed.

        False, and nothing changed, when that would leave less than headroom rows available.
        """
        hits = self._cached_prefix(sequence)
        if self._num_taken(sequence, hits) + headroom * self.row > self.pool.num_available:
            return False
        sequence.num_computed_tokens = len(hits) // self.row * self.block_size
        self._furnish(sequence, hits)
        sequence.publish_at = sequence.num_computed_tokens + self.block_size if self._writes(sequence) else NEVER
        if sequence.num_preemptions == 0:
            self._count_first_admission(sequence)
        return True

    def shortage(self, sequence: Sequence, headroom: int) -> tuple[int, Eviction]:
        """How many blocks admit() lacks, and an eviction that counts towards them."""
        hits = self._cached_prefix(sequence)
        lacking = self._num_taken(sequence, hits) + headroom * self.row - self.pool.num_available
        return lacking, Eviction(self.pool, set(hits))

    def eviction(self) -> Eviction:
        return Eviction(self.pool)

    def can_grow(self, sequence: Sequence, position: int, eviction: Eviction) -> bool:
        """Whether grow() would make the position writable after an eviction."""
        if self.pool.num_available + eviction.num_freed:
            return True
        index = position // self.block_size
        return index < len(sequence.block_ids) and not self._is_shared(sequence.block_ids[index], eviction)

    def grow(self, sequence: Sequence, position: int) -> Growth | None:
        """Make the first position without a slot writable. None, and nothing changed, when no block is available."""
        index, offset = divmod(position, self.block_size)
        blocks = sequence.block_ids
        is_new = index == len(blocks)
        assert is_new or offset, f"sequence {sequence.seq_id} would write a block that it did not fill so far"
        growth = Growth([])
        if is_new or self._is_shared(blocks[index]):
            if not self.pool.num_available:
                return None
            fresh = self.pool.allocate()
            if is_new:
                blocks.append(fresh)
                growth = Growth([fresh])
            else:
                growth = Growth([], [BlockCopy(sequence.seq_id, index, blocks[index], fresh)])
                self._give_up_source(blocks[index])
                blocks[index] = fresh
        sequence.num_slots = len(blocks) * self.block_size
        return growth

    def extend(self, sequence: Sequence, num_tokens: int) -> list[int] | None:
        """Make the positions before num_tokens writable, all of known tokens that are computed for the first time.
        Returns the fresh blocks. None, and no block was taken, when there are too few."""
        return []  # they have their blocks since admit()

    def end_plan(self) -> None:
        """The plan is made: what its copies read may be reused by the next one, which runs after it."""
        for block in self._sources:
            self.pool.release(block)
        self._sources.clear()

    def stretch(self, sequence: Sequence, count: int, headroom: int) -> list[int]:
        """Fresh blocks for `count` positions after the known tokens, as far as headroom rows stay available."""
        blocks: list[int] = []
        least = (headroom + 1) * self.row
        while sequence.num_slots < sequence.num_tokens + count and self.pool.num_available >= least:
            growth = self.grow(sequence, sequence.num_slots)
            assert growth is not None, "there is a block"
            blocks += growth.new_block_ids
        return blocks

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Share the blocks of parent's computed tokens; whoever first writes the partial last one copies it."""
        assert not parent.spare_block_ids, "a computed prompt needs no more rows"
        for block in parent.held_block_ids:
            self.pool.take(block)
        child.block_ids = list(parent.block_ids)
        child.block_hashes = list(parent.block_hashes)
        child.publish_at = parent.publish_at
        child.num_computed_tokens = parent.num_computed_tokens
        whole = parent.num_computed_tokens // self.block_size * self.block_size
        parent.num_slots = child.num_slots = whole

    def publish(self, sequence: Sequence) -> None:
        """Offer the blocks that were filled since the last call to the prefix cache."""
        salt = sequence.request.cache.salt
        while sequence.publish_at <= sequence.num_computed_tokens:
            index = sequence.publish_at // self.block_size - 1
            self.pool.publish(sequence.block_ids[index], self._hasher.block_hash(sequence, index), salt)
            sequence.publish_at += self.block_size

    def withdraw(self, sequence: Sequence) -> None:
        """Take the sequence's blocks out of the prefix cache: what was computed into them cannot be trusted."""
        for block in sequence.held_block_ids:
            self.pool.withdraw(block)
        sequence.publish_at = NEVER

    def free(self, sequence: Sequence) -> None:
        """Take all blocks back, the last first: the start of a prefix outlives its end in the cache."""
        for block in reversed(sequence.held_block_ids):
            self.pool.release(block)
        sequence.block_ids, sequence.spare_block_ids = [], []
        sequence.num_slots = sequence.num_computed_tokens = 0
        sequence.publish_at = NEVER

    def clear(self, salt: str | None) -> int:
        """Forget cached prefixes of salt (None: all). Returns how many blocks were forgotten."""
        self._hasher.forget(salt)
        return self.pool.clear(salt)

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Audit the allocator against all live sequences. Raises AuditError."""
        self.pool.check(sequence.held_block_ids for sequence in sequences)

    def _furnish(self, sequence: Sequence, hits: list[int]) -> None:
        """The blocks of a newcomer of this cached prefix, which are available."""
        for block in hits:
            self.pool.take(block)
        num_fresh = self.blocks_for(sequence.num_tokens) - len(hits)
        sequence.block_ids = hits + [self.pool.allocate() for _ in range(num_fresh)]
        sequence.num_slots = len(sequence.block_ids) * self.block_size

    def _num_taken(self, sequence: Sequence, hits: list[int]) -> int:
        """How many available blocks a newcomer of this cached prefix takes: fresh ones, and its idle ones."""
        return self.blocks_for(sequence.num_tokens) - sum(1 for block in hits if self.pool.refs(block))

    def _is_shared(self, block: int, eviction: Eviction | None = None) -> bool:
        """Whether several sequences hold a block."""
        refs = self.pool.refs(block) if eviction is None else eviction.refs(block)
        return refs - (block in self._sources) > 1

    def _give_up_source(self, block: int) -> None:
        """A sequence copies a block and leaves it. Until the plan is made the block keeps one such reference: else
        the other sequences might leave it too, and it would become the destination of another copy, while all copies
        of a plan are made at the same time."""
        if block in self._sources:
            self.pool.release(block)
        else:
            self._sources.add(block)

    def _cached_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks of the longest cached prefix, the last token left out: its logits are needed."""
        hits: list[int] = []
        if not self._reads(sequence):
            return hits
        for index in range((sequence.num_tokens - 1) // self.block_size):
            block = self.pool.lookup(self._hasher.block_hash(sequence, index))
            if block is None:
                break
            hits.append(block)
        return hits

    def _count_first_admission(self, sequence: Sequence) -> None:
        sequence.num_cached_tokens = sequence.num_computed_tokens
        if self._reads(sequence):
            self.prefix_queries += sequence.num_tokens
            self.prefix_hits += sequence.num_cached_tokens

    def _reads(self, sequence: Sequence) -> bool:
        return self._prefix_caching and sequence.request.cache.read and not sequence.wants_prompt_logprobs

    def _writes(self, sequence: Sequence) -> bool:
        return self._prefix_caching and sequence.request.cache.write
