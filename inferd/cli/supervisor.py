"""Child processes with one life: when one ends, the others are stopped; signals are passed on."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Coroutine, Mapping, Sequence

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
CLEAN_EXITS = (0, -signal.SIGTERM, -signal.SIGINT)
EXPLAINED_EXITS = (1, 2)  # of a start: the child's own last line says why

_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # looked up before any fork; Linux only


def _die_with_parent() -> None:
    """In a new child: SIGTERM when the parent is gone, however it went."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Supervisor:
    """Starts children in order, stops them in reverse. A first signal asks, a second presses, a third kills."""

    def __init__(self, environment: Mapping[str, str], patience_s: float) -> None:
        self._environment = dict(environment)
        self._patience_s = patience_s
        self._children: dict[str, Process] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._over = asyncio.Event()
        self._started = False
        self._signals: list[signal.Signals] = []

    async def start(self, name: str, command: Sequence[str]) -> None:
        """Spawn one child in its own process group, so that a terminal's Ctrl-C reaches it only through us."""
        if self._over.is_set():
            return
        child = await asyncio.create_subprocess_exec(
            *command, env=self._environment, stdin=DEVNULL, process_group=0, preexec_fn=_die_with_parent
        )
        self._children[name] = child
        self._watchers.append(asyncio.create_task(self._watch(name, child)))

    async def run(self, bring_up: Coroutine[None, None, None]) -> int:
        """Run `bring_up`, then wait for a signal or the first exit, and stop everything. The exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._on_signal, number)
        starting = asyncio.create_task(bring_up)
        starting.add_done_callback(self._on_started)
        await self._over.wait()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        asked = bool(self._signals)
        await self._stop_all()
        if not starting.cancelled() and (error := starting.exception()):
            raise error
        clean = all(child.returncode in CLEAN_EXITS for child in self._children.values())
        return 0 if asked and clean else 1

    def _on_started(self, starting: asyncio.Task[None]) -> None:
        if starting.cancelled():
            return
        if starting.exception():
            self._over.set()
        else:
            self._started = True

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals.append(number)
        self._over.set()
        if len(self._signals) > 1:
            self._send_all(number if len(self._signals) == 2 else signal.SIGKILL)

    async def _watch(self, name: str, child: Process) -> None:
        status = await child.wait()
        if not self._over.is_set():
            if self._started or status not in EXPLAINED_EXITS:
                logger.error("%s ended with status %d", name, status)
            self._over.set()

    async def _stop_all(self) -> None:
        request = self._signals[0] if self._signals else signal.SIGTERM
        for name, child in reversed(self._children.items()):
            self._send(child, request)
            try:
                await asyncio.wait_for(child.wait(), self._patience_s)
            except TimeoutError:
                logger.error("%s did not stop within %.0f s: killed", name, self._patience_s)
                self._send(child, signal.SIGKILL)
        await asyncio.gather(*self._watchers)

    def _send_all(self, number: signal.Signals) -> None:
        for child in self._children.values():
            self._send(child, number)

    @staticmethod
    def _send(child: Process, number: signal.Signals) -> None:
        if child.returncode is None:
            child.send_signal(number)
