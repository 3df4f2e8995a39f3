"""When unused KV memory is given back, and that prefixes in it are computed again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferd.config import CacheConfig
from inferd.core import reclaim
from inferd.core.reclaim import INTERVAL_S, SHORT_CALLS, UNUSED_CALLS, Reclaimer
from inferd.testing.fake_executor import FakeExecutor, fake_info
from inferd.testing.requests import Driver, make_request

PROMPT = list(range(3, 43))


class Pool:
    """An engine of 32 blocks of 4 tokens on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_stated: bool = False, is_pageable: bool = True):
        self.executor = FakeExecutor(replace(fake_info(32, 4), is_pageable=is_pageable))
        self.drive = Driver(executor=self.executor)
        self.now = 0.0
        self.is_short = False
        cache = CacheConfig(num_blocks=32 if is_stated else None)
        self.reclaimer = Reclaimer(self.drive.scheduler, self.executor, cache, lambda: self.now)
        self._key = 0
        monkeypatch.setattr(reclaim, "memory_is_short", lambda: self.is_short)

    def ask(self) -> int:
        """The same prompt again; how many of its tokens were found."""
        self._key += 1
        self.drive.add(make_request(self._key, PROMPT, max_tokens=3))
        self.drive.run()
        prompt = self.drive.choice(self._key).prompt
        assert prompt is not None
        return prompt.num_cached_tokens

    def wait(self, intervals: int) -> None:
        for _ in range(intervals):
            assert self.reclaimer.wait_s == INTERVAL_S
            self.now += INTERVAL_S
            self.reclaimer.run()


def test_a_prefix_that_is_not_asked_for_in_minutes_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch)
    assert pool.reclaimer.wait_s is None  # nothing was computed
    assert pool.ask() == 0
    pool.wait(UNUSED_CALLS - 1)
    assert pool.ask() == 36
    pool.wait(UNUSED_CALLS - 1)
    assert pool.ask() == 36
    pool.wait(UNUSED_CALLS)
    assert pool.executor.given_back[-1] == (0, 32)
    assert pool.reclaimer.wait_s is None  # nobody wakes up for nothing
    assert pool.ask() == 0
    assert pool.drive.choice(1).token_ids == pool.drive.choice(2).token_ids == pool.drive.choice(4).token_ids


def test_a_shortage_takes_what_was_not_used_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, is_stated=True)
    pool.ask()
    pool.wait(2 * UNUSED_CALLS)  # a stated pool is meant for it
    assert pool.ask() == 36
    pool.is_short = True
    pool.wait(SHORT_CALLS)
    assert pool.executor.given_back == [(0, 32)]
    assert pool.ask() == 0


def test_an_accelerators_pool_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(monkeypatch, is_pageable=False)
    pool.ask()
    assert pool.reclaimer.wait_s is None
    pool.now += 1e6
    pool.reclaimer.run()
    assert pool.executor.given_back == []


@pytest.mark.parametrize(("available", "is_short"), [(100, False), (63, False), (62, True), (0, True)])
def test_memory_is_short_below_a_sixteenth(available: int, is_short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reclaim, "available_memory", lambda: available)
    monkeypatch.setattr(reclaim, "total_memory", lambda: 1000)
    assert reclaim.memory_is_short() == is_short
