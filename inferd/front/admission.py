"""Who gets in: a bounded number of live choices, and for the rest a time to come back at."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from inferd.errors import QueueFull

RATE_WINDOW_S = 30.0
RATE_SAMPLES = 256
MIN_RETRY_S, MAX_RETRY_S = 0.05, 60.0


class Admission:
    """Counts live choices, running and waiting, against max_num_seqs + max_waiting.

    A refused caller is given the next free slot of a virtual queue that drains at the measured service rate, so that
    those refused together do not come back together.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.capacity = capacity
        self.live = 0
        self._clock = clock
        self._finished: deque[float] = deque(maxlen=RATE_SAMPLES)
        self._next_slot = 0.0

    def has_room(self, choices: int) -> bool:
        """Whether admit() would let these in."""
        return self.live + choices <= self.capacity

    def admit(self, choices: int) -> None:
        """Take `choices` places, or raise QueueFull with a retry time."""
        if not self.has_room(choices):
            raise QueueFull(
                f"{self.live} choices are running or waiting, {choices} more would exceed the limit of {self.capacity}",
                retry_after_s=self.retry_after(),
            )
        self.live += choices

    def release(self, choices: int) -> None:
        self.live -= choices
        self._finished.append(self._clock())

    def service_rate(self) -> float:
        """Requests finished per second over the last half minute; 1 while there is nothing to measure."""
        now = self._clock()
        while self._finished and self._finished[0] < now - RATE_WINDOW_S:
            self._finished.popleft()
        if len(self._finished) < 2:
            return 1.0
        return len(self._finished) / max(now - self._finished[0], 1e-3)

    def retry_after(self) -> float:
        """Seconds until the next free slot of the virtual queue, which this call takes."""
        now = self._clock()
        self._next_slot = min(max(self._next_slot, now) + 1.0 / self.service_rate(), now + MAX_RETRY_S)
        return max(self._next_slot - now, MIN_RETRY_S)
