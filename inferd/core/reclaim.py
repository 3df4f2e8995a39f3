"""Gives memory back that the KV pool took and does not need: of blocks that no request has used for minutes, or, when
the machine runs short, for seconds. Cached prefixes in them are forgotten."""

from __future__ import annotations

import logging
from collections.abc import Callable

from inferd_kernels.host import available_memory, total_memory

from inferd.config import CacheConfig
from inferd.executor.base import Executor
from inferd.scheduler.scheduler import Scheduler

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
UNUSED_CALLS = 20  # intervals after which an unused block is given back: five minutes
SHORT_CALLS = 1  # the same when memory is short
SHORT_SHARE = 1 / 16  # of the memory, when less is available


class Reclaimer:
    """Looks at the pool every INTERVAL_S. A pool of a stated size was meant for it: only a shortage takes from it."""

    def __init__(
        self, scheduler: Scheduler, executor: Executor, cache: CacheConfig, clock: Callable[[], float]
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._clock = clock
        self._is_stated = cache.num_blocks is not None or cache.memory_bytes is not None
        self._looked = clock()

    @property
    def wait_s(self) -> float | None:
        """Until run() has something to look at; None: not before something was computed."""
        if not self._executor.info.is_pageable or not self._scheduler.holds_unused_memory:
            return None
        return max(self._looked + INTERVAL_S - self._clock(), 0.0)

    def run(self) -> None:
        """Cheap when it is too early."""
        if self.wait_s != 0.0:
            return
        self._looked = self._clock()
        is_short = memory_is_short()
        if self._is_stated and not is_short:
            return
        blocks = self._scheduler.reclaim(SHORT_CALLS if is_short else UNUSED_CALLS)
        if blocks:
            count = sum(end - first for first, end in blocks)
            logger.info(
                "%s: memory of %d unused KV blocks is given back", "short of memory" if is_short else "idle", count
            )
            self._executor.give_back(blocks)


def memory_is_short() -> bool:
    return available_memory() < SHORT_SHARE * total_memory()
