"""Orders of sequences: LazyHeap, FairQueue, WaitingQueue, RunningList. No operation looks at more entries than a
logarithm of them."""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

from inferd.account import Account
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


class FairQueue:
    """The waiting sequences below one account, or of one priority: those of the child come first that was served least.
    An account's counter grows while its sequences wait, so its place is looked up again when it is first."""

    def __init__(self) -> None:
        self._children: dict[Account, FairQueue | LazyHeap[Sequence]] = {}
        self._order: LazyHeap[Account] = LazyHeap()

    def __len__(self) -> int:
        return len(self._children)

    def push(self, path: list[Account], rank: tuple[float, ...], sequence: Sequence) -> None:
        """path: from the child to the sequence's own account."""
        account, *rest = path
        child = self._children.get(account)
        if child is None:
            child = self._children[account] = FairQueue() if rest else LazyHeap()
            self._order.push((account.served,), account, account)
        if isinstance(child, FairQueue):
            child.push(rest, rank, sequence)
        else:
            child.push(rank, sequence.seq_id, sequence)

    def remove(self, path: list[Account], sequence: Sequence) -> None:
        account, *rest = path
        child = self._children[account]
        if isinstance(child, FairQueue):
            child.remove(rest, sequence)
        else:
            child.discard(sequence.seq_id)
        if not len(child):
            del self._children[account]
            self._order.discard(account)

    def peek(self) -> Sequence | None:
        while (account := self._order.peek()) is not None:
            if (account.served,) == self._order.peek_rank():
                return self._children[account].peek()
            self._order.push((account.served,), account, account)
        return None


class WaitingQueue:
    """Sequences without blocks: highest priority first, within it by turns of the accounts, and within an account the
    earliest deadline, then the earliest arrival."""

    def __init__(self) -> None:
        self._queues: dict[int, FairQueue] = {}  # by priority
        self._order: LazyHeap[FairQueue] = LazyHeap()
        self._num_sequences = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return self._num_sequences

    def push(self, sequence: Sequence) -> None:
        request = sequence.request
        queue = self._queues.get(request.priority)
        if queue is None:
            queue = self._queues[request.priority] = FairQueue()
            self._order.push((-request.priority,), request.priority, queue)
        deadline = math.inf if request.deadline is None else request.deadline
        queue.push(sequence.account.path, (deadline, request.arrival, sequence.seq_id), sequence)
        self._num_sequences += 1
        self.num_tokens += sequence.num_tokens

    def remove(self, sequence: Sequence) -> None:
        priority = sequence.request.priority
        queue = self._queues[priority]
        queue.remove(sequence.account.path, sequence)
        if not len(queue):
            del self._queues[priority]
            self._order.discard(priority)
        self._num_sequences -= 1
        self.num_tokens -= sequence.num_tokens

    def peek(self) -> Sequence | None:
        queue = self._order.peek()
        return None if queue is None else queue.peek()


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
        seats = self.seats_for(sequence)
        self.free_seats -= seats
        sequence.account.hold(seats)

    def remove(self, sequence: Sequence) -> None:
        index = bisect_left(self.sequences, running_rank(sequence), key=running_rank)
        assert self.sequences[index] is sequence, f"sequence {sequence.seq_id} does not run"
        del self.sequences[index]
        seats = self.seats_for(sequence)
        self.free_seats += seats
        sequence.account.hold(-seats)


def fair_rank(sequence: Sequence) -> tuple[float, float, float]:
    """In which order sequences that run get what a step has left: as in WaitingQueue, then in the order they have."""
    key, caller = sequence.account.path
    return (-sequence.request.priority, key.served, caller.served)


def running_rank(sequence: Sequence) -> tuple[float, float, int]:
    return (-sequence.request.priority, sequence.request.arrival, sequence.seq_id)
