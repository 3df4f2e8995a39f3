from __future__ import annotations

import pytest

from inferd.errors import QueueFull
from inferd.front.admission import MAX_RETRY_S, Admission


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(admission: Admission) -> float:
    with pytest.raises(QueueFull) as raised:
        admission.admit(1)
    assert raised.value.retry_after_s is not None
    return raised.value.retry_after_s


def test_choices_are_counted() -> None:
    admission = Admission(4)
    admission.admit(3)
    with pytest.raises(QueueFull):
        admission.admit(2)
    admission.admit(1)
    admission.release(3)
    admission.admit(3)
    assert admission.live == 4


def test_the_retry_time_follows_the_measured_rate_and_the_order_of_refusal() -> None:
    clock = Clock()
    admission = Admission(20, clock)
    admission.admit(20)
    for _ in range(10):  # ten a second
        clock.now += 0.1
        admission.release(1)
    admission.admit(10)

    assert admission.service_rate() == pytest.approx(10 / 0.9)
    first, second = refused(admission), refused(admission)
    assert first == pytest.approx(0.09)
    assert second == pytest.approx(0.18)
    clock.now += 0.18  # both slots have come
    assert refused(admission) == pytest.approx(1 / admission.service_rate())


def test_the_retry_time_is_bounded() -> None:
    admission = Admission(0, Clock())
    assert max(refused(admission) for _ in range(1000)) == MAX_RETRY_S


def test_an_old_rate_is_forgotten() -> None:
    clock = Clock()
    admission = Admission(10, clock)
    admission.admit(10)
    for _ in range(10):
        admission.release(1)
    clock.now += 60
    assert admission.service_rate() == 1.0
