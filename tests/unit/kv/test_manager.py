"""KVManager: prefix hits, growth, sharing and copying, by hand-made sequences."""

from __future__ import annotations

import pytest

from inferd.account import Accounts
from inferd.config import SchedulerConfig
from inferd.kv.manager import KVManager
from inferd.request import CacheParams, LogprobParams, Tenant
from inferd.scheduler.limits import Capacity, step_limits
from inferd.scheduler.requests import first_sequence, forked_sequence
from inferd.sequence import Sequence
from inferd.testing.requests import make_request

LIMITS = step_limits(SchedulerConfig(), Capacity(64, 4, 256, 1000))


def make_sequence(seq_id: int, prompt: range | list[int], **fields: object) -> Sequence:
    return first_sequence(seq_id, make_request(seq_id, prompt, **fields), Accounts().enter(Tenant()), LIMITS)


def compute(kv: KVManager, sequence: Sequence) -> None:
    sequence.num_computed_tokens = sequence.num_tokens
    kv.publish(sequence)


def admitted(kv: KVManager, sequence: Sequence) -> Sequence:
    assert kv.admit(sequence, headroom=0)
    return sequence


def computed(kv: KVManager, seq_id: int, prompt: range | list[int], **fields: object) -> Sequence:
    sequence = admitted(kv, make_sequence(seq_id, prompt, **fields))
    compute(kv, sequence)
    return sequence


def hits(kv: KVManager, prompt: range | list[int], **fields: object) -> int:
    """Cached tokens that a newcomer would find."""
    sequence = admitted(kv, make_sequence(999, prompt, **fields))
    found = sequence.num_cached_tokens
    kv.free(sequence)
    return found


@pytest.mark.parametrize(("length", "expected"), [(4, 0), (5, 4), (8, 4), (9, 8), (11, 8), (12, 8), (13, 12), (14, 12)])
def test_a_hit_is_whole_blocks_and_never_the_last_token(length, expected):
    kv = KVManager(64, 4)
    computed(kv, 1, range(12))
    assert hits(kv, range(length)) == expected


def test_a_hit_ends_at_the_first_difference():
    kv = KVManager(64, 4)
    computed(kv, 1, range(16))
    assert hits(kv, [0, 1, 2, 3, 4, 99, 6, 7, 8, 9, 10, 11, 12]) == 4
    assert hits(kv, [99, *range(1, 16)]) == 0
    assert hits(kv, [4, 5, 6, 7, 8, 9, 10, 11, 12]) == 0, "the same tokens at another position are another content"


def test_salts_share_nothing():
    kv = KVManager(64, 4)
    computed(kv, 1, range(9), cache=CacheParams(salt="a"))
    assert hits(kv, range(9), cache=CacheParams(salt="a")) == 8
    assert hits(kv, range(9), cache=CacheParams(salt="b")) == 0
    assert hits(kv, range(9)) == 0


def test_read_and_write_flags():
    kv = KVManager(64, 4)
    kv.free(computed(kv, 1, range(9), cache=CacheParams(write=False)))
    assert kv.pool.num_cached == 0
    computed(kv, 2, range(9))
    assert hits(kv, range(9), cache=CacheParams(read=False)) == 0
    assert hits(kv, range(9), cache=CacheParams(write=False)) == 8


def test_prompt_logprobs_need_every_position_computed():
    kv = KVManager(64, 4)
    computed(kv, 1, range(9))
    assert hits(kv, range(9), prompt_logprobs=LogprobParams()) == 0
    assert kv.prefix_hits == 0


def test_without_prefix_caching_nothing_is_kept():
    kv = KVManager(8, 4, prefix_caching=False)
    kv.free(computed(kv, 1, range(9)))
    assert (kv.pool.num_cached, hits(kv, range(9))) == (0, 0)


def test_hits_are_shared_and_survive_the_first_owner():
    kv = KVManager(8, 4)
    first = computed(kv, 1, range(9))
    second = admitted(kv, make_sequence(2, range(9)))
    assert second.block_ids[:2] == first.block_ids[:2]
    assert second.block_ids[2] != first.block_ids[2]
    kv.check([first, second])
    kv.free(first)
    kv.check([second])
    assert kv.pool.num_used == 3


def test_stats_count_first_admissions_in_tokens():
    kv = KVManager(64, 4)
    computed(kv, 1, range(9))
    again = admitted(kv, make_sequence(2, range(10)))
    assert (kv.prefix_queries, kv.prefix_hits, again.num_cached_tokens) == (19, 8, 8)
    kv.free(again)
    again.num_preemptions = 1
    admitted(kv, again)
    assert (kv.prefix_queries, kv.prefix_hits) == (19, 8)


def test_admission_refused_changes_nothing():
    kv = KVManager(4, 4)
    computed(kv, 1, range(9))
    late = make_sequence(2, [*range(8), 50, 51, 52, 53, 54])
    assert not kv.admit(late, headroom=0)
    assert late.block_ids == []
    assert not kv.admit(make_sequence(3, range(4)), headroom=1)
    assert kv.admit(make_sequence(3, range(4)), headroom=0)


def test_idle_hits_are_no_free_room():
    kv = KVManager(4, 4)
    kv.free(computed(kv, 1, range(12)))
    blocker = admitted(kv, make_sequence(2, [7]))
    newcomer = make_sequence(3, [*range(12), 5, 6, 7, 8])
    assert not kv.admit(newcomer, headroom=0), "three idle hits and one fresh block are four, three are available"
    kv.free(blocker)
    assert kv.admit(newcomer, headroom=0)


def test_grow_appends_a_block_at_the_boundary():
    kv = KVManager(4, 4)
    sequence = computed(kv, 1, range(4))
    assert sequence.num_slots == 4
    growth = kv.grow(sequence, sequence.num_computed_tokens)
    assert growth is not None
    assert not growth.copies
    assert sequence.block_ids[1:] == growth.new_block_ids
    assert sequence.num_slots == 8


def test_grow_without_blocks():
    kv = KVManager(1, 4)
    sequence = computed(kv, 1, range(4))
    assert kv.grow(sequence, sequence.num_computed_tokens) is None
    assert len(sequence.block_ids) == 1


def fork(kv: KVManager, parent: Sequence, seq_id: int) -> Sequence:
    child = forked_sequence(seq_id, parent, 1)
    kv.fork(parent, child)
    return child


def test_a_shared_partial_block_is_copied_before_the_first_write_and_the_last_owner_keeps_it():
    kv = KVManager(8, 4)
    parent = computed(kv, 1, range(6))
    child = fork(kv, parent, 2)
    assert child.block_ids == parent.block_ids
    assert child.num_slots == parent.num_slots == 4
    shared = parent.block_ids[1]
    growth = kv.grow(parent, parent.num_computed_tokens)
    assert growth is not None
    (copy,) = growth.copies
    assert (copy.seq_id, copy.index, copy.source) == (1, 1, shared)
    assert copy.destination == parent.block_ids[1] != shared
    growth = kv.grow(child, child.num_computed_tokens)
    assert growth == ([], ())
    assert child.block_ids[1] == shared
    kv.end_plan()
    kv.check([parent, child])


def test_the_source_of_a_copy_is_not_reused_while_the_plan_is_made():
    kv = KVManager(3, 4)
    parent = computed(kv, 1, range(2))
    child = fork(kv, parent, 2)
    (shared,) = child.block_ids
    kv.grow(parent, 2)
    kv.free(child)
    taken = [kv.pool.allocate() for _ in range(kv.pool.num_available)]
    assert len(taken) == 1
    assert shared not in taken
    kv.end_plan()
    assert kv.pool.allocate() == shared


def test_forks_of_whole_blocks_share_them_for_good():
    kv = KVManager(8, 4)
    parent = computed(kv, 1, range(8))
    child = fork(kv, parent, 2)
    for sequence in (parent, child):
        growth = kv.grow(sequence, sequence.num_computed_tokens)
        assert growth is not None
        assert not growth.copies
    assert parent.block_ids[:2] == child.block_ids[:2]
    assert kv.pool.num_used == 4


def test_a_forked_sequence_publishes_its_own_blocks():
    kv = KVManager(8, 4)
    parent = computed(kv, 1, range(6))
    child = fork(kv, parent, 2)
    for sequence, token in ((parent, 100), (child, 200)):
        kv.grow(sequence, sequence.num_computed_tokens)
        sequence.token_ids += [token, token]
        compute(kv, sequence)
        kv.free(sequence)
    assert hits(kv, [*range(6), 100, 100, 1]) == 8
    assert hits(kv, [*range(6), 200, 200, 1]) == 8
    assert hits(kv, [*range(6), 100, 200, 1]) == 4


def test_the_end_of_a_prefix_is_reused_before_its_start():
    kv = KVManager(4, 4)
    kv.free(computed(kv, 1, range(16)))
    admitted(kv, make_sequence(2, [500, 501, 502, 503, 504]))
    assert kv.pool.num_cached == 2
    sequence = make_sequence(3, range(16))
    kv.admit(sequence, headroom=0)
    assert sequence.num_cached_tokens == 0, "two blocks are left: not enough for the whole prompt"
    short = admitted(kv, make_sequence(4, range(8)))
    assert short.num_cached_tokens == 4


def test_clear_forgets_and_what_started_before_is_not_found_after():
    kv = KVManager(16, 4)
    sequence = computed(kv, 1, range(8))
    assert kv.clear(None) == 2
    assert hits(kv, range(9)) == 0
    computed(kv, 2, range(9))
    sequence.token_ids += [8, 9, 10, 11]
    kv.grow(sequence, sequence.num_computed_tokens)
    compute(kv, sequence)  # a block of the chain that started before the clearing
    assert hits(kv, range(13)) == 8


def test_clear_of_a_salt_leaves_the_others():
    kv = KVManager(16, 4)
    computed(kv, 1, range(9), cache=CacheParams(salt="a"))
    computed(kv, 2, range(9), cache=CacheParams(salt="b"))
    assert kv.clear("a") == 2
    assert hits(kv, range(9), cache=CacheParams(salt="a")) == 0
    assert hits(kv, range(9), cache=CacheParams(salt="b")) == 8


def test_block_hashes_are_keyed_per_process():
    names = set()
    for _ in range(2):
        kv = KVManager(8, 4)
        names.add(computed(kv, 1, range(4)).block_hashes[0])
    assert len(names) == 2
    same = [computed(KVManager(8, 4, hash_key=b"k"), 1, range(4)).block_hashes[0] for _ in range(2)]
    assert same[0] == same[1]
