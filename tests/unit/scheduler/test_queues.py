"""Orders and lazy deletion."""

from __future__ import annotations

import random

from inferd.account import Accounts
from inferd.config import SchedulerConfig
from inferd.request import StopParams
from inferd.scheduler.limits import Capacity, step_limits
from inferd.scheduler.queues import LazyHeap, RunningList, WaitingQueue
from inferd.scheduler.requests import first_sequence
from inferd.scheduler.timers import Timer, TimerKind, Timers
from inferd.sequence import Sequence
from inferd.testing.requests import make_request

ACCOUNTS = Accounts()
LIMITS = step_limits(SchedulerConfig(), Capacity(64, 4, 256, 1000))


def make_sequence(seq_id: int, **fields: object) -> Sequence:
    request = make_request(seq_id, [1, 2, 3], **fields)
    return first_sequence(seq_id, request, ACCOUNTS.enter(request.tenant), LIMITS)


def drain(queue: WaitingQueue) -> list[int]:
    order = []
    while (sequence := queue.peek()) is not None:
        order.append(sequence.seq_id)
        queue.remove(sequence)
    return order


def test_waiting_order_is_priority_then_deadline_then_arrival():
    queue = WaitingQueue()
    queue.push(make_sequence(1))
    queue.push(make_sequence(2, deadline=50.0))
    queue.push(make_sequence(3, deadline=40.0))
    queue.push(make_sequence(4, priority=-1, deadline=1.0))
    queue.push(make_sequence(5, priority=7))
    queue.push(make_sequence(6, arrival=0.5))
    assert queue.num_tokens == 18
    assert drain(queue) == [5, 3, 2, 6, 1, 4]
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_a_sequence_can_come_back():
    queue = WaitingQueue()
    sequence = make_sequence(1)
    for _ in range(3):
        queue.push(sequence)
        assert queue.peek() is sequence
        queue.remove(sequence)
        assert queue.peek() is None


def test_lazy_heap_equals_a_sorted_dict_under_random_use():
    rng = random.Random(3)
    heap: LazyHeap[int] = LazyHeap()
    model: dict[int, float] = {}
    for _ in range(3000):
        ident = rng.randrange(60)
        if rng.random() < 0.6:
            model[ident] = rng.random()
            heap.push((model[ident],), ident, ident)
        else:
            model.pop(ident, None)
            heap.discard(ident)
        best = min(model, key=model.__getitem__, default=None)
        assert (heap.peek(), len(heap)) == (best, len(model))
        assert sorted(heap.items()) == sorted(model)


def test_dead_entries_do_not_pile_up():
    heap: LazyHeap[int] = LazyHeap()
    for ident in range(10_000):
        heap.push((-ident,), ident, ident)
        heap.discard(ident)
    assert len(heap._heap) < 100


def test_running_order_and_seats():
    running = RunningList(seats=4)
    young, old, low, high = (
        make_sequence(1, arrival=9.0),
        make_sequence(2, arrival=1.0),
        make_sequence(3, priority=-1, arrival=0.0),
        make_sequence(4, priority=1, arrival=99.0, num_choices=2),
    )
    for sequence in (young, old, low):
        running.add(sequence)
    assert running.free_seats == 1
    assert running.seats_for(high) == 2
    running.remove(low)
    running.add(high)
    assert running.sequences == [high, old, young]
    assert running.free_seats == 0
    assert running.seats_for(make_sequence(5, num_choices=16)) == 4


def test_timers_come_due_once_and_cancelled_ones_never():
    timers = Timers()
    first = make_request(1, [1], deadline=10.0, queue_deadline=5.0, arrival=0.0)
    second = make_request(2, [1], stop=StopParams(max_tokens=1, time_limit_s=4.0), arrival=2.0)
    timers.start(first)
    timers.start(second)
    assert timers.due(4.9) == []
    assert timers.due(6.0) == [Timer(1, TimerKind.QUEUE_DEADLINE), Timer(2, TimerKind.TIME_LIMIT)]
    timers.cancel(first)
    assert timers.due(1e9) == []
