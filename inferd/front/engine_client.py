"""Supervises the engine core: spawns it, tells its listener what it says, restarts it when it dies or hangs."""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from inferd.config import EngineConfig
from inferd.errors import EngineDead, StartupError
from inferd.front.core_link import CoreLink
from inferd.messages import (
    Failed,
    Phase,
    PrefixCacheCleared,
    Ready,
    Shutdown,
    StateDump,
    StepOutputs,
    ToCore,
    ToFront,
)

logger = logging.getLogger("inferd.engine")

MAX_DEATHS, MIN_SERVED_S = 5, 60.0  # so many cores must have served so long together
BACKOFF_S = (0.0, 0.25, 0.5, 1.0)
GROUP_GRACE_S = 5.0
SHUTDOWN_GRACE_S = 3.0


class EngineState(enum.Enum):
    STARTING = "starting"
    SERVING = "serving"
    DEAD = "dead"  # and will not come back


class EngineListener(Protocol):
    """What the supervisor tells. All calls are made on the event loop."""

    @property
    def busy(self) -> bool:
        """Whether the core owes output."""

    def on_ready(self, ready: Ready) -> None: ...

    def on_outputs(self, outputs: StepOutputs) -> None: ...

    def on_answer(self, answer: PrefixCacheCleared | StateDump) -> None:
        """To a question of the front's."""

    def on_lost(self, reason: str, may_resume: bool) -> None:
        """The core is gone; a new one is on its way. may_resume: it is worth waiting for.

        A group of workers takes long to start again, so its callers are better told to try elsewhere.
        """

    def on_dead(self, reason: str) -> None:
        """The core is gone for good."""


class EngineClient:
    """start(), then supervise() for the life of the daemon; send() reaches the core of the moment."""

    def __init__(
        self,
        config: EngineConfig,
        listener: EngineListener,
        *,
        command: Sequence[str],
        spawned: CoreLink | None = None,
    ) -> None:
        """spawned: the first core's process, when it runs already."""
        self._config = config
        self._listener = listener
        self._command = command
        self._spawned = spawned
        self._link: CoreLink | None = None
        self._stopping = asyncio.Event()
        self._failure: str | None = None
        self._last_progress = time.monotonic()
        self._serving_since: float | None = None  # of the core of the moment
        self.state = EngineState.STARTING
        self.phase = Phase(name="spawn", fraction=0.0, elapsed_s=0.0)
        self.ready: Ready | None = None
        self._link_gone = asyncio.Event()
        self.serving = asyncio.Event()

    @property
    def pid(self) -> int | None:
        return self._link.pid if self._link else None

    def describe_phase(self) -> str:
        """What a starting core is doing, for people."""
        return f"{self.phase.name} {self.phase.fraction:.0%}"

    def send(self, message: ToCore) -> None:
        if self._link is not None:
            self._link.send(message)

    async def start(self) -> None:
        """Spawn the first core unless that was done; returns while it starts. supervise() must follow."""
        await self._spawn()

    async def supervise(self) -> None:
        """Keep a core running until stop(). Raises StartupError when the first one cannot start, EngineDead when
        too many die that served for a short time only; how long they took to load does not count."""
        served: deque[float] = deque(maxlen=MAX_DEATHS)
        while True:
            reason = await self._outlive()
            if self._stopping.is_set():
                return
            served.append(0.0 if self._serving_since is None else time.monotonic() - self._serving_since)
            if self.ready is None:
                self.state = EngineState.DEAD
                raise StartupError(self._failure or f"the engine core {reason} during start-up ({self.phase.name})")
            if len(served) == MAX_DEATHS and sum(served) < MIN_SERVED_S:
                self.state = EngineState.DEAD
                gone = f"the engine core died {MAX_DEATHS} times in {sum(served):.0f} s of service; it last {reason}"
                self._listener.on_dead(gone)
                raise EngineDead(gone)
            logger.error("the engine core %s, restarting it", reason)
            self._listener.on_lost(reason, may_resume=self._config.parallel.world_size == 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(BACKOFF_S[min(len(served), len(BACKOFF_S)) - 1]):
                    await self._stopping.wait()
                    return
            await self._spawn()

    async def stop(self) -> None:
        """Ask the core to leave, and see to it. supervise() returns."""
        self._stopping.set()
        link = self._link
        if link is None:
            return
        link.send(Shutdown())
        if self.serving.is_set():  # a loading core hears nothing
            with suppress(TimeoutError):
                async with asyncio.timeout(SHUTDOWN_GRACE_S):
                    await self._link_gone.wait()
        link.destroy()
        await self._link_gone.wait()

    async def _spawn(self) -> None:
        self.state, self._failure, self._serving_since = EngineState.STARTING, None, None
        link, self._spawned = self._spawned, None
        if link is None:
            link = CoreLink()
            await link.spawn(self._command)
        self._last_progress = time.monotonic()
        link.begin(self._config, self._on_message)
        self._link = link
        self._link_gone.clear()
        if self._stopping.is_set():  # stop() found nothing to stop
            link.destroy()

    async def _outlive(self) -> str:
        """Wait for the core's end; returns how it ended."""
        link = self._link
        assert link is not None
        watchdog = asyncio.create_task(self._watch(link))
        try:
            return await link.wait()
        finally:
            watchdog.cancel()
            link.destroy()
            self._link = None
            self.serving.clear()
            self._link_gone.set()

    async def _watch(self, link: CoreLink) -> None:
        """Kill a core that has said nothing for longer than it may."""
        shortest = min(self._config.parallel.step_timeout_s, self._config.load_timeout_s)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            limit = self._allowed_silence()
            if limit is None:
                self._last_progress = time.monotonic()
            elif time.monotonic() - self._last_progress > limit:
                link.kill(f"made no progress for {limit:g} s")

    def _allowed_silence(self) -> float | None:
        """For how long the core may say nothing now; None: for ever, because it owes nothing. One with several workers
        watches them itself, and gets some time to say where they hang."""
        if not self.serving.is_set():
            return self._config.load_timeout_s
        if not self._listener.busy:
            return None
        parallel = self._config.parallel
        return parallel.step_timeout_s + (GROUP_GRACE_S if parallel.world_size > 1 else 0.0)

    def _on_message(self, message: ToFront) -> None:
        self._last_progress = time.monotonic()
        match message:
            case StepOutputs():
                self._listener.on_outputs(message)
            case Phase():
                self.phase = message
            case Ready():
                self.ready, self.state = message, EngineState.SERVING
                self._serving_since = time.monotonic()
                self._listener.on_ready(message)
                self.serving.set()
            case PrefixCacheCleared() | StateDump():
                self._listener.on_answer(message)
            case Failed():
                self._failure = message.message
