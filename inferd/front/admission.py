"""Who gets in: a bounded number of live choices, and for the rest a time to come back at, at which a place is free."""

from __future__ import annotations

import heapq
import time
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass

from inferd.errors import QueueFull
from inferd.front.service_rate import ServiceRate
from inferd.request import Request

MIN_RETRY_S, MAX_RETRY_S = 0.05, 60.0
FIRST_RETRY_S = 5.0  # at most, while nothing is known of the rate: it will be then
MIN_GRACE_S = 1.5  # HTTP names whole seconds, so many come up to one late
GRACE_SHARE = 0.25
EARLY_SHARE = 0.01  # of the time that a caller was told: who comes earlier is somebody else, who asks for the same
MIN_SHOW_SHARE = 0.1  # of refused callers who come back; never none, lest the first of them find nothing
SHOW_WEIGHT = 1 / 32
MAX_BOOKINGS = 100_000


@dataclass(eq=False, slots=True)
class Booking:
    """A place promised to a refused caller. Times are the admission clock's."""

    wish: int
    choices: int
    opens: float
    due: float
    kept: bool = False


class Bookings:
    """Promised places, by what their callers asked for: who comes back asks for the same."""

    def __init__(self) -> None:
        self.choices = 0
        self._by_wish: dict[int, list[Booking]] = {}  # by when they are due
        self._expiries: list[tuple[float, int, Booking]] = []  # (when, number, booking), a heap
        self._number = 0
        self._show_share = 1.0

    def __len__(self) -> int:
        return len(self._expiries)

    @property
    def expected(self) -> float:
        """Choices that will be claimed, as far as those before tell."""
        return self.choices * max(self._show_share, MIN_SHOW_SHARE)

    def forget_late(self, now: float) -> None:
        while self._expiries and (self._expiries[0][2].kept or self._expiries[0][0] < now):
            _, _, booking = heapq.heappop(self._expiries)
            if not booking.kept:
                self._remove(booking)
                self._show_share -= self._show_share * SHOW_WEIGHT

    def find(self, wish: int, now: float) -> Booking | None:
        """The place that is due first of those who asked for this, if it is about time."""
        same = self._by_wish.get(wish)
        return same[0] if same and same[0].opens <= now else None

    def add(self, wish: int, choices: int, now: float, delay: float) -> None:
        if len(self._expiries) >= MAX_BOOKINGS:
            return
        booking = Booking(wish, choices, now + (1 - EARLY_SHARE) * delay, now + delay)
        insort(self._by_wish.setdefault(wish, []), booking, key=lambda one: one.due)
        self.choices += choices
        self._number += 1
        expiry = booking.due + max(MIN_GRACE_S, GRACE_SHARE * delay)
        heapq.heappush(self._expiries, (expiry, self._number, booking))

    def claim(self, booking: Booking) -> None:
        """Its caller has come back."""
        self._remove(booking)
        booking.kept = True
        self._show_share += (1 - self._show_share) * SHOW_WEIGHT

    def _remove(self, booking: Booking) -> None:
        self.choices -= booking.choices
        same = self._by_wish[booking.wish]
        same.remove(booking)
        if not same:
            del self._by_wish[booking.wish]


class Admission:
    """Counts live choices, running and waiting, against max_num_seqs + max_waiting.

    A refused caller is given a place in a virtual queue behind those who were refused before, and the time at which
    that place will be free. Half of the waiting places are kept for those who come back, as far as they do: a caller
    who was refused comes before one who is new, and finds room though the estimate was a little short.
    """

    def __init__(self, seats: int, waiting: int, clock: Callable[[], float] = time.monotonic) -> None:
        """seats: choices that run at once; waiting: further ones that may be here."""
        self.capacity = seats + waiting
        self.live = 0
        self._reserve = waiting // 2
        self._clock = clock
        self._rate = ServiceRate(seats)
        self._bookings = Bookings()
        self._admitted: dict[int, float] = {}  # request key -> when

    @property
    def service_rate(self) -> float | None:
        """Choices per second that promises are reckoned with; None while nothing is known of it."""
        return self._rate.per_second()

    @property
    def promised(self) -> int:
        """Choices of refused callers who may still come back."""
        return self._bookings.choices

    def has_room(self, request: Request) -> bool:
        """Whether admit() would let it in."""
        now = self._clock()
        self._bookings.forget_late(now)
        return self._fits(request, self._booking_of(request, now) is not None)

    def admit(self, request: Request) -> None:
        """Take a place for each choice, or raise QueueFull with a retry time."""
        now, count = self._clock(), request.num_choices
        self._bookings.forget_late(now)
        booking = self._booking_of(request, now)
        if not self._fits(request, booking is not None):
            raise QueueFull(
                f"{self.live} choices are running or waiting, {count} more would exceed the limit of {self.capacity}",
                retry_after_s=self.retry_after(request),
            )
        if booking is not None:
            self._bookings.claim(booking)
        self._rate.note(now, self.live)
        self.live += count
        self._admitted[request.key] = now

    def release(self, request: Request) -> None:
        now = self._clock()
        self._rate.note(now, self.live, ended=request.num_choices)
        self._rate.note_stay(now - self._admitted.pop(request.key), self.live)
        self.live -= request.num_choices

    def retry_after(self, request: Request) -> float:
        """Seconds until there is a place for a request that was refused, which is promised to it."""
        now, wish = self._clock(), wish_of(request)
        booking = self._bookings.find(wish, now)
        if booking is not None and booking.due > now:
            return max(booking.due - now, MIN_RETRY_S)  # a little early: what was promised holds
        ahead = self.live + request.num_choices - (self.capacity - self._reserve)
        if booking is not None:
            self._bookings.claim(booking)  # in time, but the estimate was short
            needed = max(1.0, ahead)
        else:
            needed = max(1.0, ahead + self._bookings.expected)
        self._rate.note(now, self.live)
        rate = self._rate.per_second()
        wait = min(needed, FIRST_RETRY_S) if rate is None else needed / rate
        delay = min(max(wait, MIN_RETRY_S), MAX_RETRY_S)
        self._bookings.add(wish, request.num_choices, now, delay)
        return delay

    def _booking_of(self, request: Request, now: float) -> Booking | None:
        return self._bookings.find(wish_of(request), now) if self._bookings.choices else None

    def _fits(self, request: Request, is_booked: bool) -> bool:
        kept = 0.0 if is_booked else min(self._bookings.expected, self._reserve)
        return self.live + request.num_choices <= self.capacity - kept


def wish_of(request: Request) -> int:
    """The same for a request that its tenant makes again, whatever its id: no client has to say that it comes back."""
    return hash((request.tenant, tuple(request.prompt_token_ids), request.num_choices, request.stop.max_tokens))
