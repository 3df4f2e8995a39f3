"""WindowedKVManager: what a sequence holds of each cache group, by hand-made sequences."""

from __future__ import annotations

import pytest

from inferd.account import Accounts
from inferd.cache_groups import CacheGroups
from inferd.config import SchedulerConfig
from inferd.kv.manager import KVManager
from inferd.kv.pool import AuditError
from inferd.kv.windows import WindowedKVManager, create_manager
from inferd.request import Tenant
from inferd.scheduler.limits import Capacity, step_limits
from inferd.scheduler.requests import first_sequence, forked_sequence
from inferd.sequence import FREED, Sequence
from inferd.testing.requests import make_request

LIMITS = step_limits(SchedulerConfig(), Capacity(64, 4, 256, 1000))
GROUPS = CacheGroups(windows=(0, 6), block_size=4, chunk=8)


def sequence_of(seq_id: int, num_tokens: int) -> Sequence:
    request = make_request(seq_id, range(num_tokens))
    return first_sequence(seq_id, request, Accounts().enter(Tenant()), LIMITS)


def compute(kv: KVManager, sequence: Sequence, chunk: int = 8) -> None:
    """All known tokens, in chunks."""
    while sequence.num_computed_tokens < sequence.num_tokens:
        end = min(sequence.num_computed_tokens + chunk, sequence.num_tokens)
        assert kv.extend(sequence, end) is not None
        sequence.num_computed_tokens = end
        kv.publish(sequence)
        kv.check([sequence])


def holds(sequence: Sequence, group: int) -> list[int]:
    """The rows whose block of a group is held."""
    return [row for row, block in enumerate(sequence.block_ids[group::2]) if block != FREED]


def test_one_group_without_a_window_has_the_plain_manager() -> None:
    assert type(create_manager(CacheGroups((0,), 4, 8), 4, True)) is KVManager
    assert type(create_manager(CacheGroups((6,), 4, 8), 4, True)) is WindowedKVManager


def test_the_numbers_of_groups() -> None:
    assert [GROUPS.first_row(6, position) for position in (0, 5, 8, 9, 13)] == [0, 0, 0, 1, 2]
    assert GROUPS.first_row(0, 1000) == 0
    assert GROUPS.blocks_for(100) == 25 + (6 + 8 - 2) // 4 + 2
    assert GROUPS.longest(GROUPS.blocks_for(100)) == 100
    assert GROUPS.longest(GROUPS.blocks_for(100) - 1) == 96
    assert GROUPS.longest(1) == 0
    assert CacheGroups((6,), 4, 8).longest(5) > 10**9
    assert CacheGroups((6,), 4, 8).longest(4) == 16


def test_blocks_behind_the_window_are_given_back_and_used_again() -> None:
    kv = WindowedKVManager(GROUPS.blocks_for(100), GROUPS)
    sequence = sequence_of(1, 100)
    assert kv.admit(sequence, headroom=0)
    compute(kv, sequence)
    assert holds(sequence, 0) == list(range(25))
    assert holds(sequence, 1) == list(range((96 - 6 + 1) // 4, 25))  # since the last chunk, from 96 on, began
    assert sequence.spare_block_ids == []
    sequence.token_ids.append(7)
    growth = kv.grow(sequence, 100)
    assert growth is not None
    assert len(growth.new_block_ids) == 2
    assert holds(sequence, 1) == [23, 24, 25]
    kv.check([sequence])


def test_an_admitted_prompt_is_computed_whatever_comes_after_it() -> None:
    kv = WindowedKVManager(GROUPS.blocks_for(80) + GROUPS.blocks_for(20), GROUPS)
    first, second, third = sequence_of(1, 80), sequence_of(2, 20), sequence_of(3, 1)
    second.request = make_request(2, range(500, 520))
    assert kv.admit(first, headroom=0)
    assert kv.admit(second, headroom=0)
    assert not kv.admit(third, headroom=0)
    while first.num_computed_tokens < 80:
        first.num_computed_tokens += 8
        assert kv.extend(first, min(first.num_computed_tokens + 8, 80)) is not None
    kv.check([first, second])


def test_a_hit_needs_the_window_before_its_end_alone() -> None:
    kv = WindowedKVManager(64, GROUPS, hash_key=b"k")
    first = sequence_of(1, 40)
    assert kv.admit(first, headroom=0)
    compute(kv, first)
    kv.free(first)
    again = sequence_of(2, 40)
    assert kv.admit(again, headroom=0)
    assert again.num_computed_tokens == 36
    assert (holds(again, 0), holds(again, 1)) == (list(range(9)), [7, 8])
    compute(kv, again)
    kv.free(again)
    lost = kv.pool.lookup(kv._hasher.block_hash(again, 7) + b"\1")
    assert lost is not None
    kv.pool.take(lost)
    kv.pool.withdraw(lost)
    kv.pool.release(lost)
    shorter = sequence_of(3, 40)
    assert kv.admit(shorter, headroom=0)
    assert shorter.num_computed_tokens == 28  # row 7 is in the window of what comes after rows 8 and 9
    compute(kv, shorter)


def test_a_fork_copies_the_partial_row_of_every_group() -> None:
    kv = WindowedKVManager(64, GROUPS)
    parent = sequence_of(1, 30)
    assert kv.admit(parent, headroom=0)
    compute(kv, parent)
    child = forked_sequence(2, parent, 1)
    kv.fork(parent, child)
    for sequence in (parent, child):
        sequence.token_ids.append(1)
    growth = kv.grow(parent, 30)
    assert growth is not None
    assert [copy.index for copy in growth.copies] == [14, 15]
    assert [copy.source for copy in growth.copies] == child.block_ids[14:16]
    assert [copy.destination for copy in growth.copies] == parent.block_ids[14:16]
    again = kv.grow(child, 30)
    assert again is not None
    assert not again.copies
    kv.end_plan()
    kv.check([parent, child])


def test_the_audit_covers_every_group() -> None:
    kv = WindowedKVManager(64, GROUPS)
    sequence = sequence_of(1, 30)
    assert kv.admit(sequence, headroom=0)
    compute(kv, sequence)
    kv.pool.release(sequence.block_ids[13])
    sequence.block_ids[13] = FREED
    with pytest.raises(AuditError, match="window of group 1"):
        kv.check([sequence])
