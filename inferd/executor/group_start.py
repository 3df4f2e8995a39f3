"""From a configuration to a GroupExecutor: start the workers, compare them, let them load, share out the KV blocks."""

from __future__ import annotations

import logging
from typing import TypeVar

from inferd.checkpoint import Checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorDead, ExecutorInfo, Progress
from inferd.executor.group import GroupExecutor
from inferd.executor.kv_plan import KVPlan, KVRoom, plan_kv
from inferd.executor.launch import create_launcher
from inferd.executor.links import RankLinks
from inferd.executor.seats import Backend, Launcher, Seat
from inferd.executor.wire import (
    Allocate,
    Allocated,
    Connect,
    Environment,
    Hello,
    Loaded,
    Loading,
    Measure,
    Measured,
    Setup,
    local_environment,
)
from inferd.models.shard import shard_model
from inferd.models.spec import ModelSpec
from inferd.parallel.placement import Placement

logger = logging.getLogger(__name__)

MessageT = TypeVar("MessageT")


def start_group(
    config: EngineConfig, backend: Backend, checkpoint: Checkpoint, spec: ModelSpec, progress: Progress
) -> GroupExecutor:
    """progress gets the phases workers, weights and cache. Raises StartupError, also when a worker dies meanwhile."""
    parallel = config.parallel
    size = parallel.world_size
    for rank in range(size):
        placement = Placement(rank, parallel.tensor_parallel_size, parallel.pipeline_parallel_size)
        shard_model(spec, placement, 1)
    environment = local_environment(checkpoint.fingerprint)
    launcher = create_launcher(config, backend, environment)
    links: RankLinks | None = None
    try:
        progress("workers", 0.0)
        seats = launcher.start(progress)
        links = RankLinks([seat.sock for seat in seats])
        loaded, plan = _bring_up(config, links, list(seats), environment, spec, progress)
        info = _info(config, spec, loaded, plan)
    except ExecutorDead as error:
        endings = launcher.endings()
        _end(launcher, links)
        raise StartupError(f"a worker ended during start-up: {error}" + (f" ({endings})" if endings else "")) from None
    except BaseException:
        _end(launcher, links)
        raise
    return GroupExecutor(info, loaded, links, launcher, parallel)


def _end(launcher: Launcher, links: RankLinks | None) -> None:
    launcher.kill()
    if links is not None:
        links.close()


def _bring_up(
    config: EngineConfig,
    links: RankLinks,
    seats: list[Seat],
    environment: Environment,
    spec: ModelSpec,
    progress: Progress,
) -> tuple[list[Loaded], KVPlan]:
    for rank, seat in enumerate(seats):
        links.send(rank, Setup(config, rank, seat.device_index, seat.num_local, seat.host))
    hellos = _collect(links, Hello, progress)
    check_environments(environment, {rank: hello.environment for rank, hello in enumerate(hellos)})
    host, port = hellos[0].store_host, hellos[0].store_port
    assert host is not None, "rank 0 opens the store"
    assert port is not None, "rank 0 opens the store"
    links.broadcast(Connect(host, port))
    progress("workers", 1.0)
    progress("weights", 0.0)
    loaded = _collect(links, Loaded, progress)
    progress("weights", 1.0)
    progress("cache", 0.0)
    links.broadcast(Measure())
    measured = _collect(links, Measured, progress)
    plan = plan_kv(spec, config, [KVRoom(each.block_bytes, each.budget) for each in measured])
    links.broadcast(Allocate(plan.num_blocks))
    _collect(links, Allocated, progress)
    progress("cache", 1.0)
    for rank, each in enumerate(loaded):
        logger.info("rank %d holds %d bytes of weights, read %d", rank, each.weight_bytes, each.bytes_read)
    return loaded, plan


def _collect(links: RankLinks, kind: type[MessageT], progress: Progress) -> list[MessageT]:
    """One message of that kind from each rank, by rank. Raises StartupError and ExecutorDead."""
    found: dict[int, MessageT] = {}
    fractions = [0.0] * links.size
    while len(found) < links.size:
        rank, message = links.receive()
        if isinstance(message, Loading):
            fractions[rank] = message.fraction
            progress("weights", min(fractions))
        elif isinstance(message, kind):
            found[rank] = message
        else:
            raise ExecutorDead(f"rank {rank} sent {type(message).__name__} instead of {kind.__name__}")
    return [found[rank] for rank in range(links.size)]


def check_environments(own: Environment, theirs: dict[int, Environment]) -> None:
    """Raises StartupError naming the first rank whose versions or checkpoint are not ours."""
    for rank, environment in theirs.items():
        if differences := environment.differences(own):
            raise StartupError(f"rank {rank} runs in another environment than the engine: {'; '.join(differences)}")


def _info(config: EngineConfig, spec: ModelSpec, loaded: list[Loaded], plan: KVPlan) -> ExecutorInfo:
    return ExecutorInfo(
        architecture=loaded[0].architecture,
        dtype=loaded[0].dtype,
        quantization=loaded[0].quantization,
        vocab_size=spec.vocab_size,
        max_context_tokens=plan.max_context,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        weight_bytes=sum(each.weight_bytes for each in loaded),
        kv_bytes=plan.total_bytes,
        windows=plan.windows,
        backends=loaded[0].backends,
        is_pageable=all(each.is_pageable for each in loaded),
        pipeline_depth=config.parallel.pipeline_parallel_size,
    )
