"""A worker process from its first frame to its last: set up, load, run the steps it is sent."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeVar

import msgspec

from inferd.allocator import freed_memory_returned, return_start_up_memory
from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.torch_import import import_torch
from inferd.executor.wire import (
    Allocate,
    Allocated,
    Connect,
    DumpStacks,
    FromRank,
    GiveBack,
    Hello,
    Loaded,
    Loading,
    Measure,
    Measured,
    RankFailed,
    RunStep,
    Setup,
    Stacks,
    StepDone,
    StepTime,
    StepTimes,
    Stop,
    ToRank,
    encode,
    local_environment,
    receive,
)
from inferd.models.registry import check_checkpoint
from inferd.parallel.placement import Placement
from inferd.step import StepPlan

if TYPE_CHECKING:
    from inferd.executor.build import LoadedModel
    from inferd.executor.worker import Worker

logger = logging.getLogger(__name__)

TIMES_INTERVAL_S = 0.25
LOADING_INTERVAL_S = 0.1
GROUP_TIMEOUT_FACTOR = 2.0  # a collective gives up after the core has noticed that a step hangs
MessageT = TypeVar("MessageT", bound=ToRank)


class CoreGone(Exception):
    """Nobody is left to work for."""


class CoreSocket:
    """The worker's end. A thread reads, so that a request for stacks and the core's end are noticed in any state."""

    def __init__(self, sock: socket.socket) -> None:
        self.inbox: SimpleQueue[ToRank | None] = SimpleQueue()
        self.on_step: Callable[[StepPlan], None] = lambda plan: None  # called by the thread, before the inbox has it
        self._socket = sock
        self._lock = threading.Lock()

    def start(self) -> None:
        threading.Thread(target=self._read, name="core-reader", daemon=True).start()

    def send(self, message: FromRank) -> None:
        """Raises CoreGone."""
        frame = encode(message)
        try:
            with self._lock:
                self._socket.sendall(frame)
        except OSError as error:
            raise CoreGone(str(error)) from None

    def expect(self, kind: type[MessageT]) -> MessageT:
        """The next message. Raises CoreGone when the core wants us to leave."""
        message = self.inbox.get()
        if message is None or isinstance(message, Stop):
            raise CoreGone("the core wants no more")
        assert isinstance(message, kind), f"{type(message).__name__} came, {kind.__name__} was due"
        return message

    def _read(self) -> None:
        try:
            while True:
                message: ToRank = receive(self._socket, ToRank)  # type: ignore[arg-type]  # a union is no type
                if isinstance(message, DumpStacks):
                    self.send(Stacks(describe_threads()))
                    continue
                if isinstance(message, RunStep):
                    self.on_step(message.plan)
                self.inbox.put(message)
                if isinstance(message, Stop):
                    return
        except (OSError, EOFError, ValueError, CoreGone, RuntimeError) as error:  # RuntimeError: a peer is gone
            logger.info("the core or a peer is gone: %s", error)
            os._exit(1)  # the main thread may be stuck in a collective


@dataclass(frozen=True, slots=True)
class RankSettings:
    """What this rank was told of itself; config has the checkpoint's path on this machine."""

    config: EngineConfig
    setup: Setup

    @property
    def placement(self) -> Placement:
        parallel = self.config.parallel
        return Placement(self.setup.rank, parallel.tensor_parallel_size, parallel.pipeline_parallel_size)


def run_rank(sock: socket.socket, setup: Setup, model_path: str | None) -> int:
    """Returns the exit status. model_path replaces the engine's, where the checkpoint is somewhere else."""
    config = setup.config
    if model_path is not None:
        config = msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=model_path))
    core = CoreSocket(sock)
    core.start()
    try:
        worker, placement = _prepare(core, RankSettings(config, setup))
        return_start_up_memory()
        serve_steps(core, worker, placement)
    except CoreGone:
        return 0
    except StartupError as error:
        return _report(core, str(error), is_startup=True)
    except (RuntimeError, MemoryError) as error:
        logger.exception("rank %d failed", setup.rank)
        return _report(core, f"{type(error).__name__}: {str(error).splitlines()[0]}", is_startup=False)
    return 0


def _report(core: CoreSocket, message: str, is_startup: bool) -> int:
    try:
        core.send(RankFailed(message, is_startup))
    except CoreGone:
        return 0
    return 1


def _prepare(core: CoreSocket, settings: RankSettings) -> tuple[Worker, Placement]:
    """Everything up to the first step: hello, groups, weights, cache."""
    config, placement = settings.config, settings.placement
    checkpoint = open_checkpoint(Path(config.model.path), with_vocabulary=False)
    spec = check_checkpoint(checkpoint)
    assert not spec.is_encoder, "the core starts groups for decoders only"
    import_torch()
    from inferd.executor.build import build_worker, kv_room, load_model, rank_device, resolve_device
    from inferd.parallel.context import connect, join_store, open_store

    setup = settings.setup
    config = msgspec.structs.replace(config, device=rank_device(config.device, setup.num_local))
    device = resolve_device(config.device, setup.device_index, setup.num_local)
    timeout_s = max(config.parallel.step_timeout_s * GROUP_TIMEOUT_FACTOR, 10.0)
    environment = local_environment(checkpoint.fingerprint)
    if placement.rank == 0:
        server = open_store(setup.host, timeout_s)
        core.send(Hello(environment, setup.host, server.port))
        core.expect(Connect)
        store = server.store
    else:
        core.send(Hello(environment))
        rendezvous = core.expect(Connect)
        store = join_store(rendezvous.host, rendezvous.port, timeout_s)
    context = connect(placement, store, device, setup.host, timeout_s)
    with freed_memory_returned():
        model = load_model(config, checkpoint, spec, device, LoadingReporter(core), context)
    core.send(_loaded(model))
    core.expect(Measure)  # a collective would give up on a rank that loads much longer than others
    room = kv_room(model, config, setup.num_local)
    core.send(Measured(room.block_bytes, room.budget))
    worker = build_worker(model, core.expect(Allocate).num_blocks, config.cache.block_size)
    core.on_step = worker.expect
    core.send(Allocated())
    return worker, placement


class LoadingReporter:
    """Tells the core how far loading is, ten times a second at most."""

    def __init__(self, core: CoreSocket) -> None:
        self._core = core
        self._last = 0.0

    def __call__(self, fraction: float) -> None:
        now = time.monotonic()
        if fraction >= 1.0 or now - self._last >= LOADING_INTERVAL_S:
            self._last = now
            self._core.send(Loading(fraction))


def _loaded(model: LoadedModel) -> Loaded:
    return Loaded(
        architecture=model.spec.architecture,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        weight_bytes=model.weights.num_bytes,
        bytes_read=model.bytes_read,
        backends=dict(model.ops.backends),
        is_pageable=model.device.type == "cpu",
    )


def serve_steps(core: CoreSocket, worker: Worker, placement: Placement) -> None:
    """Run plans until the core wants no more. Raises CoreGone, and what a failing device or collective raises."""
    times: list[StepTime] = []
    reported = time.monotonic()
    while True:
        try:
            message = core.inbox.get(timeout=TIMES_INTERVAL_S if times else None)
        except Empty:
            message = None
        else:
            if message is None or isinstance(message, Stop):
                return
            if isinstance(message, GiveBack):
                worker.give_back(message.blocks)
                continue
            assert isinstance(message, RunStep), f"{type(message).__name__} is no step"
            began, waited = time.monotonic(), worker.waited_s
            result = worker.execute(message.plan)
            ended = time.monotonic()
            if placement.answers:
                core.send(StepDone(result))
            times.append(StepTime(message.plan.step, began, ended, worker.waited_s - waited))
        if times and (message is None or times[-1].ended - reported >= TIMES_INTERVAL_S):
            core.send(StepTimes(times))
            times, reported = [], times[-1].ended


def describe_threads() -> str:
    """The stack of every thread, outermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, 'unknown')}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
