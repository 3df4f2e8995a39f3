"""PhaseReporter: tells the front, while the core starts, what takes the time."""

from __future__ import annotations

import time
from collections.abc import Callable

from inferd.messages import Phase

REPORT_INTERVAL_S = 0.1


class PhaseReporter:
    """progress() is called with every bit of progress and sends some of it: each phase's start and end, and in between
    one message per REPORT_INTERVAL_S."""

    def __init__(self, send: Callable[[Phase], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds: dict[str, float] = {}  # of each phase, ended or not
        self._send = send
        self._clock = clock
        self._name = ""
        self._phase_started = self._last_sent = clock()

    def progress(self, name: str, fraction: float) -> None:
        now = self._clock()
        is_new = name != self._name
        if is_new:
            self._end_phase(now)
            self._name, self._phase_started = name, now
        self.seconds[name] = now - self._phase_started
        if is_new or fraction >= 1.0 or now - self._last_sent >= REPORT_INTERVAL_S:
            self._last_sent = now
            self._send(Phase(name, fraction, self.seconds[name]))

    def finish(self) -> None:
        self._end_phase(self._clock())

    def _end_phase(self, now: float) -> None:
        if self._name:
            self.seconds[self._name] = now - self._phase_started
