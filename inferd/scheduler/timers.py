"""Timers: when requests must leave. Asking costs nothing until one is due."""

from __future__ import annotations

import enum
from typing import NamedTuple

from inferd.request import Request
from inferd.scheduler.queues import LazyHeap


class TimerKind(enum.Enum):
    QUEUE_DEADLINE = "queue deadline"  # of a request that was never scheduled
    DEADLINE = "deadline"
    TIME_LIMIT = "time limit"


class Timer(NamedTuple):
    key: int
    kind: TimerKind


class Timers:
    def __init__(self) -> None:
        self._heap: LazyHeap[Timer] = LazyHeap()

    def __len__(self) -> int:
        return len(self._heap)

    def start(self, request: Request) -> None:
        for kind, when in times(request):
            timer = Timer(request.key, kind)
            self._heap.push((when,), timer, timer)

    def cancel(self, request: Request) -> None:
        for kind, _ in times(request):
            self._heap.discard(Timer(request.key, kind))

    def due(self, now: float) -> list[Timer]:
        """Timers that have run out, in their order; each is returned once."""
        timers: list[Timer] = []
        while (rank := self._heap.peek_rank()) is not None and rank[0] <= now:
            timer = self._heap.peek()
            assert timer is not None, "a rank without an item"
            self._heap.discard(timer)
            timers.append(timer)
        return timers


def times(request: Request) -> list[tuple[TimerKind, float]]:
    """The times at which this request must leave, CLOCK_MONOTONIC seconds."""
    found = []
    if request.queue_deadline is not None:
        found.append((TimerKind.QUEUE_DEADLINE, request.queue_deadline))
    if request.deadline is not None:
        found.append((TimerKind.DEADLINE, request.deadline))
    if request.stop.time_limit_s is not None:
        found.append((TimerKind.TIME_LIMIT, request.arrival + request.stop.time_limit_s))
    return found
