"""BlockPool owns the blocks: who refers to them, what contents they are known by, which one is reused next."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class AuditError(Exception):
    """The allocator's books do not add up: our bug."""


class BlockPool:
    """Every block is in exactly one state.

    referenced   refs > 0; may have a hash (others may join it) or not
    idle         refs = 0, has a hash: still holds tokens that a later prompt may start with; reused oldest first
    free         refs = 0, no hash
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._refs = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._salts = [""] * num_blocks  # of the hash
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._cached: dict[bytes, int] = {}
        self._written: set[int] = set()  # that take memory, since they were allocated and not given back
        self._age = 0  # grows with each reclaim()
        self._released_at = [0] * num_blocks  # the age when the last reference went

    @property
    def num_available(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free) + len(self._idle)

    @property
    def num_used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._idle)

    @property
    def num_cached(self) -> int:
        """Blocks that a lookup can find."""
        return len(self._cached)

    def refs(self, block: int) -> int:
        return self._refs[block]

    def lookup(self, block_hash: bytes) -> int | None:
        return self._cached.get(block_hash)

    def allocate(self) -> int:
        """A block of the caller's own. The caller has asked num_available."""
        if self._free:
            block = self._free.pop()
        else:
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        self._refs[block] = 1
        self._written.add(block)
        return block

    def take(self, block: int) -> None:
        """One more reference to a block that holds tokens."""
        if self._refs[block] == 0:
            del self._idle[block]
        self._refs[block] += 1

    def release(self, block: int) -> None:
        """One reference less; the last one leaves a hashed block idle and any other free."""
        refs = self._refs[block] = self._refs[block] - 1
        if refs == 0:
            self._released_at[block] = self._age
            if self._hashes[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None

    def publish(self, block: int, block_hash: bytes, salt: str) -> None:
        """Let lookups find a full block. When another block holds the same tokens already, that one stays."""
        if block_hash not in self._cached:
            self._cached[block_hash] = block
            self._hashes[block] = block_hash
            self._salts[block] = salt

    def withdraw(self, block: int) -> None:
        """Let no lookup find a referenced block any more, whatever it was published as."""
        assert self._refs[block], f"block {block} is not referenced"
        if self._hashes[block] is not None:
            self._forget(block)

    def clear(self, salt: str | None) -> int:
        """Forget the contents published under salt (None: all). Returns how many blocks were forgotten."""
        blocks = [block for block in self._cached.values() if salt is None or self._salts[block] == salt]
        for block in blocks:
            self._forget(block)
            if self._refs[block] == 0:
                del self._idle[block]
                self._free.append(block)
        return len(blocks)

    @property
    def holds_unused(self) -> bool:
        """Whether reclaim() will find something, now or at a later call."""
        return len(self._written) > self.num_used

    def reclaim(self, calls: int) -> list[tuple[int, int]]:
        """Forget what nobody has referred to for the last `calls` calls. Returns the blocks [first, end) whose memory
        is for nothing, also those that were returned before: their neighbours share pages with them. Nothing when no
        block is new among them. O(blocks)."""
        self._age += 1
        oldest = self._age - calls
        forgotten = [block for block in self._idle if self._released_at[block] <= oldest]
        for block in forgotten:
            del self._idle[block]
            self._forget(block)
        self._free = forgotten + self._free  # those that still take memory are allocated first
        unused = [block for block in self._free if self._released_at[block] <= oldest]
        if self._written.isdisjoint(unused):
            return []
        self._written.difference_update(unused)
        return _ranges(sorted(unused))

    def check(self, tables: Iterable[list[int]]) -> None:
        """Audit against the block tables of all live sequences. Raises AuditError. O(blocks)."""
        uses = Counter(block for table in tables for block in table)
        if any(uses[block] != refs for block, refs in enumerate(self._refs)):
            wrong = {block: (uses[block], refs) for block, refs in enumerate(self._refs) if uses[block] != refs}
            raise AuditError(f"blocks whose table uses differ from their references (uses, refs): {wrong}")
        if sum(uses.values()) != sum(self._refs):
            raise AuditError(f"a table holds a block outside 0..{self.num_blocks - 1}")
        unreferenced = [*self._free, *self._idle]
        if len(set(unreferenced)) != len(unreferenced) or any(self._refs[block] for block in unreferenced):
            raise AuditError("a block is free twice, or free and referenced")
        if len(unreferenced) + len(uses) != self.num_blocks:
            raise AuditError(f"{len(unreferenced)} free + {len(uses)} referenced blocks are not {self.num_blocks}")
        self._check_hashes()

    def _check_hashes(self) -> None:
        hashed = {block: value for block, value in enumerate(self._hashes) if value is not None}
        if {value: block for block, value in hashed.items()} != self._cached or len(hashed) != len(self._cached):
            raise AuditError(f"{len(hashed)} hashed blocks do not match {len(self._cached)} cached hashes")
        if any(block not in hashed for block in self._idle) or any(block in hashed for block in self._free):
            raise AuditError("an idle block has no hash, or a free one has")

    def _forget(self, block: int) -> None:
        block_hash = self._hashes[block]
        assert block_hash is not None, f"block {block} is not cached"
        del self._cached[block_hash]
        self._hashes[block] = None


def _ranges(blocks: list[int]) -> list[tuple[int, int]]:
    """Ascending block numbers as ranges [first, end)."""
    firsts = [block for index, block in enumerate(blocks) if index == 0 or blocks[index - 1] != block - 1]
    lasts = [block for index, block in enumerate(blocks) if index + 1 == len(blocks) or blocks[index + 1] != block + 1]
    return [(first, last + 1) for first, last in zip(firsts, lasts, strict=True)]
