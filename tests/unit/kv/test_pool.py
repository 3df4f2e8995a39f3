"""BlockPool: states of a block, order of reuse, and an audit that notices every kind of damage."""

from __future__ import annotations

import pytest

from inferd.kv.pool import AuditError, BlockPool


def cached(pool: BlockPool, name: bytes, salt: str = "") -> int:
    """An idle block known as name."""
    block = pool.allocate()
    pool.publish(block, name, salt)
    pool.release(block)
    return block


def test_unhashed_block_is_free_after_its_last_release():
    pool = BlockPool(2)
    block = pool.allocate()
    pool.take(block)
    pool.release(block)
    assert (pool.num_used, pool.num_available) == (1, 1)
    pool.release(block)
    assert (pool.num_used, pool.num_available) == (0, 2)


def test_idle_blocks_are_found_until_reused_oldest_first():
    pool = BlockPool(3)
    first, second = cached(pool, b"first"), cached(pool, b"second")
    pool.take(first)
    pool.release(first)  # used again: now younger than second
    pool.allocate()  # the one that is free
    assert pool.allocate() == second
    assert pool.lookup(b"second") is None
    assert pool.lookup(b"first") == first


def test_blocks_that_nothing_uses_are_forgotten_and_named_with_their_free_neighbours():
    pool = BlockPool(8)
    blocks = [cached(pool, bytes([number])) for number in range(6)]
    live = pool.allocate()
    pool.take(blocks[2])
    assert pool.holds_unused
    assert pool.reclaim(2) == []
    pool.take(blocks[4])
    pool.release(blocks[4])  # used since
    assert pool.reclaim(2) == [(0, 2), (3, 4), (5, 6), (7, 8)]
    assert [pool.lookup(bytes([number])) for number in range(6)] == [None, None, 2, None, 4, None]
    assert pool.reclaim(2) == [(0, 2), (3, 6), (7, 8)]  # those beside it are said again: their pages were shared
    assert not pool.holds_unused
    pool.release(live)
    pool.release(blocks[2])
    pool.check([])
    assert pool.reclaim(2) == []
    assert pool.reclaim(1) == [(0, 8)]
    assert (pool.num_cached, pool.num_available, pool.holds_unused) == (0, 8, False)
    pool.check([])


def test_free_blocks_are_taken_before_idle_ones():
    pool = BlockPool(2)
    cached(pool, b"kept")
    pool.allocate()
    assert pool.lookup(b"kept") is not None


def test_same_contents_published_twice_keep_the_first_block():
    pool = BlockPool(2)
    first, second = pool.allocate(), pool.allocate()
    pool.publish(first, b"same", "")
    pool.publish(second, b"same", "")
    assert pool.lookup(b"same") == first
    pool.release(second)
    pool.check([[first]])
    assert pool.num_cached == 1


def test_clear_by_salt_forgets_that_salt_only():
    pool = BlockPool(4)
    cached(pool, b"a", "tenant-a")
    cached(pool, b"b", "tenant-b")
    busy = pool.allocate()
    pool.publish(busy, b"a2", "tenant-a")
    assert pool.clear("tenant-a") == 2
    assert (pool.lookup(b"a"), pool.lookup(b"a2")) == (None, None)
    assert pool.lookup(b"b") is not None
    pool.check([[busy]])
    assert pool.clear(None) == 1
    pool.release(busy)
    pool.check([])
    assert pool.num_available == 4


def test_idle_order_survives_many_blocks():
    pool = BlockPool(1000)
    blocks = [pool.allocate() for _ in range(1000)]
    for block in blocks:
        pool.publish(block, block.to_bytes(4), "")
    for block in reversed(blocks):
        pool.release(block)
    assert [pool.allocate() for _ in range(1000)] == blocks[::-1]


def lose_a_block(pool: BlockPool) -> None:
    pool._free.pop()


def free_twice(pool: BlockPool) -> None:
    pool._free.append(pool._free[-1])


def count_wrong(pool: BlockPool) -> None:
    pool._refs[0] += 1


def forget_a_hash(pool: BlockPool) -> None:
    pool._cached.popitem()


def hash_a_free_block(pool: BlockPool) -> None:
    block = pool._free[-1]
    pool._hashes[block] = b"x"
    pool._cached[b"x"] = block


@pytest.mark.parametrize("damage", [lose_a_block, free_twice, count_wrong, forget_a_hash, hash_a_free_block])
def test_check_notices(damage):
    pool = BlockPool(4)
    block = pool.allocate()
    cached(pool, b"idle")
    pool.check([[block]])
    damage(pool)
    with pytest.raises(AuditError):
        pool.check([[block]])


def test_check_notices_a_table_that_holds_what_it_has_not_taken():
    pool = BlockPool(4)
    block = pool.allocate()
    for tables in ([[block, block]], [[block], [7]], []):
        with pytest.raises(AuditError):
            pool.check(tables)
