"""Retry times under overload, on a clock of our own: who comes back when told finds a place."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable

import pytest

from inferd.errors import QueueFull
from inferd.front.admission import Admission
from inferd.request import Request
from inferd.testing.requests import make_request

Event = Callable[[], None]
MEAN_S = 0.5
TIMES: dict[str, Callable[[random.Random], float]] = {
    "constant": lambda _: MEAN_S,
    "exponential": lambda rng: rng.expovariate(1 / MEAN_S),
    "heavy tail": lambda rng: MEAN_S * rng.lognormvariate(-0.5, 1.0),
}
SIZES = [(8, 32), (64, 256)]
QUIET_S = 8.0


class World:
    """An engine with so many seats behind an admission, and callers who do as they are told."""

    def __init__(self, seats: int, waiting: int, times: str, whole_seconds: bool, prompts: int = 0) -> None:
        """prompts: how many different ones there are; 0: each caller has one of its own."""
        self.now = 0.0
        self.rng = random.Random(7)
        self.rate = seats / MEAN_S
        self.size = seats + waiting
        self.first_retries = [0, 0]  # that found a place, that found none
        self.delays: list[float] = []
        self._admission = Admission(seats, waiting, lambda: self.now)
        self._free = seats
        self._waiting: deque[tuple[Request, Event | None]] = deque()
        self._service_time = TIMES[times]
        self._whole_seconds = whole_seconds
        self._prompts = prompts
        self._events: list[tuple[float, int, Event]] = []
        self._numbers = itertools.count()
        for number in range(int(0.75 * self.rate * QUIET_S)):
            self.at(number / (0.8 * self.rate), self.ask)

    def at(self, when: float, event: Event) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def ask(self, then: Event | None = None, returns: float = 1.0, prompt: int | None = None, tries: int = 0) -> None:
        """returns: how likely the caller comes back; then: called once it was served."""
        key = next(self._numbers)
        if prompt is None:
            prompt = self.rng.randrange(self._prompts) if self._prompts else key
        request = make_request(key, [prompt])
        try:
            self._admission.admit(request)
        except QueueFull as error:
            self.first_retries[1] += tries == 1
            delay = error.retry_after_s or 0.0
            self.delays.append(delay)
            if self.rng.random() < returns:
                delay = math.ceil(delay) if self._whole_seconds else delay
                back = self.now + delay + self.rng.uniform(0.001, 0.02)
                self.at(back, lambda: self.ask(then, returns, prompt, tries + 1))
            return
        self.first_retries[0] += tries == 1
        self._waiting.append((request, then))
        self._seat()

    def _seat(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            request, then = self._waiting.popleft()
            self.at(self.now + self._service_time(self.rng), lambda one=request, after=then: self._end(one, after))

    def _end(self, request: Request, then: Event | None) -> None:
        self._free += 1
        self._admission.release(request)
        self._seat()
        if then is not None:
            then()

    def arrivals(self, start: float, seconds: float, times_the_rate: float, returns: float = 1.0) -> None:
        when = start
        while when < start + seconds:
            when += self.rng.expovariate(times_the_rate * self.rate)
            self.at(when, lambda: self.ask(returns=returns))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, event = heapq.heappop(self._events)
            event()

    @property
    def success(self) -> float:
        return self.first_retries[0] / sum(self.first_retries)


def burst(world: World) -> None:
    """Three times what fits, all at once."""
    for _ in range(3 * world.size):
        world.at(QUIET_S, world.ask)


def closed_loop(world: World) -> None:
    """Three times as many callers as fit, each with its next request the moment it was served."""

    def again() -> None:
        if world.now < 40:
            world.ask(then=lambda: world.at(world.now + 0.001, again))

    for _ in range(3 * world.size):
        world.at(QUIET_S, again)


def overload(world: World) -> None:
    """Twice the rate for a while."""
    world.arrivals(QUIET_S, 15, 2.0)


def waves(world: World) -> None:
    """Four times the rate, and nothing, by turns."""
    for start in range(5):
        world.arrivals(QUIET_S + 10 * start, 2.0, 4.0)


def some_return(world: World) -> None:
    """Twice the rate for long, and of the refused one in three comes back."""
    world.arrivals(QUIET_S, 30, 2.0, returns=0.33)


@pytest.mark.parametrize("whole_seconds", [False, True], ids=["exact", "whole seconds"])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("size", SIZES, ids=["8 seats", "64 seats"])
@pytest.mark.parametrize("load", [burst, closed_loop, overload, waves, some_return], ids=lambda load: load.__name__)
def test_who_comes_back_when_told_finds_a_place(
    load: Callable[[World], None], size: tuple[int, int], times: str, whole_seconds: bool
) -> None:
    world = World(*size, times, whole_seconds)
    load(world)
    world.run(400)
    assert sum(world.first_retries) > 50
    assert world.success >= 0.9, world.first_retries


@pytest.mark.parametrize("times", TIMES)
def test_few_different_prompts_under_lasting_overload(times: str) -> None:
    """Newcomers who ask for the same take some of the promised places: nothing tells them from who comes back."""
    world = World(8, 32, times, whole_seconds=False, prompts=5)
    overload(world)
    world.run(400)
    assert world.success >= 0.8, world.first_retries


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("size", SIZES, ids=["8 seats", "64 seats"])
def test_the_time_does_not_climb_when_nobody_comes_back(size: tuple[int, int], times: str) -> None:
    """Five times the rate. Left alone, the queue is worked off in size / rate seconds: the times are of that order."""
    world = World(*size, times, whole_seconds=False)
    world.arrivals(QUIET_S, 40, 5.0, returns=0.0)
    world.run(400)
    refused = len(world.delays)
    assert refused > 100
    assert max(world.delays[refused // 2 :]) < 2 * world.size / world.rate
