"""`inferd serve`: from a configuration to a served model, and back."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from inferd.allocator import return_start_up_memory
from inferd.checkpoint import open_checkpoint
from inferd.checkpoint.source import resolve_source
from inferd.config import InferdConfig
from inferd.errors import EngineDead, StartupError
from inferd.front.core_link import CoreLink, core_command
from inferd.front.engine import FrontEngine
from inferd.front.engine_client import EngineClient
from inferd.front.metrics import FrontMetrics
from inferd.models.registry import check_checkpoint, model_spec
from inferd.server.served_model import ServedModel, load_served_model

if TYPE_CHECKING:
    from inferd.server.daemon import Daemon

logger = logging.getLogger("inferd.server")


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a serving daemon is reached."""

    host: str
    port: int
    metrics_port: int | None
    admin: str | None = None


class StopSignals:
    """SIGTERM and SIGINT as events. A terminal's Ctrl-C has no balancer behind it, so it needs no settling."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hurry = asyncio.Event()
        self.settle = True
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            self.hurry.set()
        self.settle = self.settle and number is signal.SIGTERM
        self.stop.set()


async def serve(config: InferdConfig, core: CoreLink) -> None:
    """Run the daemon around a spawned core until a signal has drained it.

    Raises StartupError when it cannot start (nothing listens before the checkpoint has been checked), or when the
    engine keeps dying.
    """
    signals = StopSignals()
    try:
        config = check_model(config)
    except BaseException:
        await core.end()
        raise
    command = core_command(config.engine.parallel)
    await run_daemon(config, partial(load_served_model, config), signals, command=command, core=core)


async def run_daemon(
    config: InferdConfig,
    load_model: Callable[[], ServedModel],
    signals: StopSignals,
    *,
    command: Sequence[str],
    core: CoreLink | None = None,
    ready: Callable[[Listening], None] | None = None,
) -> None:
    """serve() for a checked checkpoint; load_model is called while the core starts, `ready` when it serves for the
    first time. command: of every core but the first, where that one is there already."""
    started = time.monotonic()
    front = FrontEngine(config.engine.scheduler, FrontMetrics())
    client = EngineClient(config.engine, front, command=command, spawned=core)
    front.attach(client.send, client.describe_phase)
    await client.start()
    supervisor = asyncio.create_task(client.supervise())
    daemon: Daemon | None = None
    try:
        daemon = await start_daemon(config, load_model(), front)
        await unless_failed(supervisor, any_of(client.serving, signals.stop))
        if client.serving.is_set():
            logger.info("serving", extra={"seconds": round(time.monotonic() - started, 2)})
            return_start_up_memory()
            if ready is not None:
                ready(Listening(config.server.host, daemon.port, daemon.metrics_port, daemon.admin_address))
        await unless_failed(supervisor, signals.stop.wait())
        await daemon.drain(signals.hurry, config.server.drain_settle_s if signals.settle else 0.0)
        daemon = None
        logger.info("drained")
    except EngineDead as error:
        raise StartupError(error.message) from error
    finally:
        if daemon is not None:
            await daemon.close()
        await client.stop()
        supervisor.cancel()
        with suppress(asyncio.CancelledError, EngineDead, StartupError):
            await supervisor


async def start_daemon(config: InferdConfig, model: ServedModel, front: FrontEngine) -> Daemon:
    from inferd.server.daemon import Daemon  # loads gRPC: the core has its configuration by now

    daemon = Daemon(config, model, front)
    try:
        await daemon.start()
    except BaseException:
        await daemon.close()
        raise
    return daemon


def check_model(config: InferdConfig) -> InferdConfig:
    """The configuration with the model's local path. Raises StartupError, also for a checkpoint that does not fit."""
    model = config.engine.model
    path = Path(model.path) if model.path else resolve_source(model.source, model.revision, log_progress, model_spec)
    check_checkpoint(open_checkpoint(path, with_vocabulary=False))
    model = msgspec.structs.replace(model, path=str(path))
    return msgspec.structs.replace(config, engine=msgspec.structs.replace(config.engine, model=model))


def log_progress(phase: str, fraction: float) -> None:
    logger.info("%s: %.0f %%", phase, 100 * fraction)


async def unless_failed(supervisor: asyncio.Task[None], wait: Coroutine[Any, Any, object]) -> None:
    """Wait; raises what ended the supervisor if it ends first."""
    task = asyncio.create_task(wait)
    try:
        await asyncio.wait({supervisor, task}, return_when=asyncio.FIRST_COMPLETED)
        if supervisor.done():
            supervisor.result()
    finally:
        task.cancel()


async def any_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
