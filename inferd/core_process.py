"""`python -m inferd.core_process --fd N`: the engine core, spawned by the front with one end of a socket pair."""

from __future__ import annotations

import argparse
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from inferd.allocator import return_start_up_memory
from inferd.config import EngineConfig
from inferd.core.channel import FrontChannel, FrontGone, receive_config
from inferd.core.dump import describe
from inferd.core.lifetime import exit_after_grace, follow_parent, settle_garbage_collector
from inferd.core.loop import EngineLoop
from inferd.core.reclaim import Reclaimer
from inferd.core.startup import PhaseReporter
from inferd.errors import StartupError
from inferd.executor.base import Executor, ExecutorDead, Progress
from inferd.executor.torch_import import import_torch
from inferd.log import configure_logging
from inferd.messages import Failed, Ready
from inferd.scheduler.limits import Capacity
from inferd.scheduler.scheduler import Scheduler

logger = logging.getLogger("inferd.core")

CreateExecutor: TypeAlias = Callable[[EngineConfig, Progress], Executor]


def main(argv: Sequence[str] | None = None) -> int:
    return run(argv, create_executor)


def create_executor(config: EngineConfig, progress: Progress) -> Executor:
    from inferd.executor.factory import create_executor as create

    return create(config, progress)


def run(argv: Sequence[str] | None, create: CreateExecutor) -> int:
    """The life of a core; returns the exit status: 0 when the front wanted it to leave, else 1."""
    parser = argparse.ArgumentParser(prog="inferd.core_process", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited socket to the front")
    parser.add_argument("--load-torch", action="store_true", help="import torch while the configuration comes")
    options = parser.parse_args(argv)
    sock = socket.socket(fileno=options.fd)
    follow_parent()
    if options.load_torch:
        threading.Thread(target=import_torch, name="import-torch", daemon=True).start()
    try:
        config = receive_config(sock)
    except FrontGone:
        return 0
    configure_logging(config.log_level, config.log_format, process="core")
    channel = FrontChannel(sock, partial(describe, None), on_eof=exit_after_grace)
    channel.start()
    try:
        serve(config, channel, create)
    except FrontGone as error:
        logger.info("the front is gone: %s", error)
    except StartupError as error:
        channel.send(Failed(str(error)))
        return 1
    except ExecutorDead as error:
        logger.error("the executor died: %s", error)
        return 1
    except Exception:
        logger.exception("the engine core failed")
        return 1
    return 0


def serve(config: EngineConfig, channel: FrontChannel, create: CreateExecutor) -> None:
    """Build the engine, say Ready, loop until the front wants no more. Raises StartupError, FrontGone, ExecutorDead."""
    reporter = PhaseReporter(channel.send)
    executor = create(config, reporter.progress)
    try:
        info = executor.info
        capacity = Capacity(
            info.num_blocks,
            info.block_size,
            info.max_context_tokens,
            info.vocab_size,
            info.pipeline_depth,
            info.whole_prompts,
            info.looks_ahead,
            info.windows,
        )
        scheduler = Scheduler(config.scheduler, config.cache, capacity)
        channel.describe = partial(describe, scheduler)
        reporter.finish()
        settle_garbage_collector()
        channel.send(ready_message(executor, scheduler, reporter))
        return_start_up_memory()
        EngineLoop(scheduler, executor, channel, Reclaimer(scheduler, executor, config.cache, time.monotonic)).run()
    finally:
        executor.shutdown()


def ready_message(executor: Executor, scheduler: Scheduler, reporter: PhaseReporter) -> Ready:
    info = executor.info
    return Ready(
        max_context_tokens=scheduler.limits.max_context,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        vocab_size=info.vocab_size,
        architecture=info.architecture,
        dtype=info.dtype,
        quantization=info.quantization,
        backends=dict(info.backends),
        weight_bytes=info.weight_bytes,
        kv_bytes=info.kv_bytes,
        phases=dict(reporter.seconds),
    )


if __name__ == "__main__":
    sys.exit(main())
