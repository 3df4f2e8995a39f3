"""Orders of sequences: LazyHeap, WaitingQueue, RunningList. No operation looks at more entries than a logarithm."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

from inferd.sequence import Sequence

ItemT = TypeVar("ItemT")
COMPACT_SLACK = 64


class LazyHeap(Generic[ItemT]):
    """Smallest rank first. Removal from the middle is O(1): the entry goes when it surfaces or when many are dead."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[float, ...], int, Hashable, ItemT]] = []
        self._live: dict[Hashable, int] = {}  # id -> serial of its one valid entry
        self._serials = count()

    def __len__(self) -> int:
        return len(self._live)

    def push(self, rank: tuple[float, ...], ident: Hashable, item: ItemT) -> None:
        serial = self._live[ident] = next(self._serials)
        heapq.heappush(self._heap, (rank, serial, ident, item))

    def discard(self, ident: Hashable) -> None:
        self._live.pop(ident, None)
        if len(self._heap) > 2 * len(self._live) + COMPACT_SLACK:
            self._heap = [entry for entry in self._heap if self._live.get(entry[2]) == entry[1]]
            heapq.heapify(self._heap)

    def peek(self) -> ItemT | None:
        entry = self._first()
        return entry[3] if entry else None

    def peek_rank(self) -> tuple[float, ...] | None:
        entry = self._first()
        return entry[0] if entry else None

    def items(self) -> list[ItemT]:
        """In no particular order; O(entries)."""
        return [entry[3] for entry in list(self._heap) if self._live.get(entry[2]) == entry[1]]

    def _first(self) -> tuple[tuple[float, ...], int, Hashable, ItemT] | None:
        heap = self._heap
        while heap and self._live.get(heap[0][2]) != heap[0][1]:
            heapq.heappop(heap)
        return heap[0] if heap else None


class WaitingQueue:
    """Sequences without blocks: highest priority first, then the earliest deadline, then the earliest arrival."""

    def __init__(self) -> None:
        self._heap: LazyHeap[Sequence] = LazyHeap()
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, sequence: Sequence) -> None:
        request = sequence.request
        deadline = math.inf if request.deadline is None else request.deadline
        rank = (-request.priority, deadline, request.arrival, sequence.seq_id)
        self._heap.push(rank, sequence.seq_id, sequence)
        self.num_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        self._heap.discard(sequence.seq_id)
        self.num_tokens -= sequence.num_tokens

    def peek(self) -> Sequence | None:
        return self._heap.peek()

    def sequences(self) -> list[Sequence]:
        return self._heap.items()


class RunningList:
    """Sequences with blocks, best first: highest priority, then earliest arrival. The last is preempted first."""

    def __init__(self, seats: int) -> None:
        self.sequences: list[Sequence] = []
        self.free_seats = seats
        self._seats = seats

    def __len__(self) -> int:
        return len(self.sequences)

    def seats_for(self, sequence: Sequence) -> int:
        """One per choice it will fork into; a request with more choices than seats runs some of them later."""
        return min(max(len(sequence.choices), 1), self._seats)

    def has_seat(self, sequence: Sequence) -> bool:
        return self.seats_for(sequence) <= self.free_seats

    def add(self, sequence: Sequence) -> None:
        insort(self.sequences, sequence, key=running_rank)
        self.free_seats -= self.seats_for(sequence)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self.sequences, running_rank(sequence), key=running_rank)
        assert self.sequences[index] is sequence, f"sequence {sequence.seq_id} does not run"
        del self.sequences[index]
        self.free_seats += self.seats_for(sequence)


def running_rank(sequence: Sequence) -> tuple[float, float, int]:
    return (-sequence.request.priority, sequence.request.arrival, sequence.seq_id)
