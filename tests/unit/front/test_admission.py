from __future__ import annotations

import msgspec
import pytest

from inferd.errors import QueueFull
from inferd.front.admission import FIRST_RETRY_S, MAX_RETRY_S, MIN_RETRY_S, Admission
from inferd.request import Request, Tenant
from inferd.testing.requests import make_request


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Callers:
    """Distinct requests, unless a prompt is given: what is asked for again is the same."""

    def __init__(self) -> None:
        self._made = 0

    def request(self, prompt: int | None = None, choices: int = 1) -> Request:
        self._made += 1
        return make_request(self._made, [-self._made if prompt is None else prompt], num_choices=choices)


def refused(admission: Admission, request: Request) -> float:
    assert not admission.has_room(request)
    with pytest.raises(QueueFull) as raised:
        admission.admit(request)
    assert raised.value.retry_after_s is not None
    return raised.value.retry_after_s


def admitted(admission: Admission, request: Request) -> Request:
    assert admission.has_room(request)
    admission.admit(request)
    return request


def test_choices_are_counted() -> None:
    admission, callers = Admission(4, 0), Callers()
    three = admitted(admission, callers.request(choices=3))
    refused(admission, callers.request(choices=2))
    admitted(admission, callers.request())
    admission.release(three)
    admitted(admission, callers.request(choices=3))
    assert admission.live == 4


def busy(clock: Clock, seats: int, waiting: int) -> tuple[Admission, Callers, list[Request]]:
    """Full, after ten choices a second ended."""
    admission, callers = Admission(seats, waiting, clock), Callers()
    live = [admitted(admission, callers.request()) for _ in range(seats + waiting)]
    for _ in range(40):
        clock.now += 0.1
        admission.release(live.pop(0))
        live.append(admitted(admission, callers.request()))
    return admission, callers, live


def test_refused_callers_are_called_one_after_the_other() -> None:
    """At the measured rate, with some caution, and behind those who were refused before."""
    admission, callers, _ = busy(Clock(), 8, 0)
    assert admission.service_rate == pytest.approx(9.0)
    assert [refused(admission, callers.request()) for _ in range(3)] == pytest.approx([1 / 9, 2 / 9, 3 / 9])
    assert refused(admission, callers.request(choices=4)) == pytest.approx(7 / 9)
    assert admission.promised == 7


def test_who_comes_a_little_early_is_told_the_same_time() -> None:
    clock = Clock()
    admission, callers, _ = busy(clock, 8, 0)
    delays = [refused(admission, callers.request(prompt)) for prompt in range(8)]
    clock.now += 0.995 * delays[-1]
    assert refused(admission, callers.request(7)) == pytest.approx(max(0.005 * delays[-1], MIN_RETRY_S))
    assert admission.promised == 8


def test_callers_who_ask_for_the_same_have_places_of_their_own() -> None:
    clock = Clock()
    admission, callers, live = busy(clock, 8, 0)
    delays = [refused(admission, callers.request(1)) for _ in range(3)]
    assert delays == pytest.approx([1 / 9, 2 / 9, 3 / 9])
    for _ in delays:
        clock.now += 1 / 9
        admission.release(live.pop(0))
        admitted(admission, callers.request(1))
    assert admission.promised == 0


def test_a_place_is_not_given_to_another_tenant_who_asks_for_the_same() -> None:
    clock = Clock()
    admission, callers, live = busy(clock, 4, 4)
    clock.now += refused(admission, callers.request(1))
    admission.release(live[0])
    refused(admission, msgspec.structs.replace(callers.request(1), tenant=Tenant("another key")))
    admitted(admission, callers.request(1))


def test_a_kept_place_is_for_who_was_promised_it() -> None:
    """A newcomer waits behind him, even one who comes just when a place is free."""
    clock = Clock()
    admission, callers, live = busy(clock, 4, 4)
    clock.now += refused(admission, callers.request(1))
    admission.release(live[0])
    refused(admission, callers.request())
    admitted(admission, callers.request(1))
    assert admission.promised == 1


def test_callers_who_do_not_come_back_are_forgotten() -> None:
    """Their places are given away, and fewer are kept for the next."""
    clock = Clock()
    admission, callers, live = busy(clock, 8, 8)
    for _ in range(100):
        refused(admission, callers.request())
    assert refused(admission, callers.request()) > 10
    clock.now += 30
    admission.release(live[0])
    admitted(admission, callers.request())
    assert admission.promised == 0
    assert admission.service_rate is not None
    for_five = 5 / admission.service_rate  # one place, beside the four that are kept
    assert refused(admission, callers.request()) == pytest.approx(for_five)
    assert refused(admission, callers.request()) == pytest.approx(1.02 * for_five)


def test_the_retry_time_is_bounded() -> None:
    admission, callers, _ = busy(Clock(), 1, 0)
    assert max(refused(admission, callers.request()) for _ in range(1000)) == MAX_RETRY_S
    clock = Clock()
    admission, callers, live = busy(clock, 1000, 0)
    for request in live:
        admission.release(request)
        admission.admit(callers.request())
    assert refused(admission, callers.request()) == MIN_RETRY_S


def test_before_it_was_ever_full_the_rate_is_reckoned_from_how_long_requests_take() -> None:
    clock = Clock()
    admission, callers = Admission(10, 0, clock), Callers()
    assert admission.service_rate is None
    request = admitted(admission, callers.request())
    clock.now += 2.0
    admission.release(request)
    assert admission.service_rate == pytest.approx(0.9 * 0.5 * 10 / 2.0)
    for _ in range(10):
        admission.admit(callers.request())
    clock.now += 8.0  # and none has ended: these are longer
    refused(admission, callers.request())
    assert admission.service_rate == pytest.approx(0.9 * 10 / 8.0)


def test_nobody_waits_long_for_a_guess() -> None:
    admission, callers = Admission(1, 0, Clock()), Callers()
    admission.admit(callers.request())
    delays = [refused(admission, callers.request()) for _ in range(100)]
    assert (min(delays), max(delays)) == (1.0, FIRST_RETRY_S)


def test_times_without_load_say_nothing_of_the_rate() -> None:
    clock = Clock()
    admission, callers, live = busy(clock, 8, 0)
    before = admission.service_rate
    for request in live:
        admission.release(request)
    clock.now += 600
    for _ in range(8):
        admission.admit(callers.request())
    assert admission.service_rate == pytest.approx(before, rel=0.3)
