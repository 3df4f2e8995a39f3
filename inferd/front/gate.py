"""Whether requests are let in, and why not."""

from __future__ import annotations

from collections.abc import Callable

from inferd.errors import Draining, EngineDead, NotReady

RETRY_S = 1.0  # when to come back while the core starts, or another daemon takes over


class Gate:
    """Open while an engine is ready, nothing drains and the engine is not dead for good."""

    def __init__(self) -> None:
        self.ready = False
        self.drain_reason: str | None = None
        self.phase: Callable[[], str] = lambda: ""  # what a starting core is doing, for people
        self.on_change: Callable[[], None] = lambda: None  # called whenever `is_open` may have changed
        self._was_ready = False
        self._ending = False
        self._dead: str | None = None

    @property
    def is_open(self) -> bool:
        return self.ready and self._dead is None and self.drain_reason is None

    def check(self) -> None:
        """Raise the InferdError that a request meets now, if any: Draining, NotReady or EngineDead."""
        if self.drain_reason is not None:
            raise Draining(self.drain_reason, retry_after_s=RETRY_S)
        if self._dead is not None:
            raise EngineDead(self._dead)
        if not self.ready:
            state = "the engine died and restarts" if self._was_ready else "the model is loading"
            raise NotReady(f"{state}: {self.phase()}", retry_after_s=RETRY_S)

    def set_ready(self, ready: bool) -> None:
        self.ready, self._was_ready = ready, self._was_ready or ready
        self.on_change()

    def set_dead(self, reason: str) -> None:
        self.ready, self._dead = False, reason
        self.on_change()

    def drain(self, reason: str, *, ending: bool = False) -> None:
        """Admit nothing more. ending: nor ever again, since the process ends."""
        if not self._ending:
            self._ending, self.drain_reason = ending, reason
        self.on_change()

    def undrain(self) -> None:
        """Raises Draining when the process ends."""
        if self._ending:
            raise Draining("the process is ending")
        self.drain_reason = None
        self.on_change()
