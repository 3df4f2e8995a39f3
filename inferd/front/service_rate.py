"""How many choices end per second while there is more to do than can run at once."""

from __future__ import annotations

MEMORY = 128  # ends that count, or four for each seat; what lies further back counts less and less
CAUTION = 0.9  # a place that is free a little early costs nothing, one that is not yet free costs a refusal
ALONE = 0.5  # requests that found free seats were faster than those that share all of them
STAY_WEIGHT = 1 / 16


class ServiceRate:
    """Counts only while all seats are taken: at other times it would measure demand. Before that has been, it reckons
    from how long a request takes that need not wait. Times are in seconds of one clock."""

    def __init__(self, seats: int) -> None:
        self._seats = seats
        self._memory = max(MEMORY, 4 * seats)
        self._ended = self._busy_s = 0.0
        self._since = 0.0
        self._stay_s: float | None = None

    def note(self, now: float, live: int, ended: int = 0) -> None:
        """`live` choices were here since the last note, and `ended` of them end now."""
        elapsed, self._since = now - self._since, now
        if live >= self._seats:
            kept = 1 - ended / (self._memory + ended)
            self._ended = (self._ended + ended) * kept
            self._busy_s = (self._busy_s + elapsed) * kept

    def note_stay(self, seconds: float, live: int) -> None:
        """A request ended that was here so long, beside `live` choices at its end."""
        if live < self._seats:
            before = seconds if self._stay_s is None else self._stay_s
            self._stay_s = before + (seconds - before) * STAY_WEIGHT

    def per_second(self) -> float | None:
        """With caution: a little less than is likely. None before anything has ended."""
        if self._ended >= self._seats / 2 and self._busy_s > 0:
            return CAUTION * self._ended / self._busy_s
        if not self._stay_s:
            return None
        # Not more than if all that run ended now: the requests before may have been shorter.
        return CAUTION * min(ALONE * self._seats / self._stay_s, (self._ended + self._seats) / max(self._busy_s, 1e-3))
