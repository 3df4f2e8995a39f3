"""`inferd serve MODEL`: the gRPC daemon, until it is drained."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from inferd.allocator import limit_arenas
from inferd.cli.arguments import Parsed
from inferd.cli.build import build_config, check_config
from inferd.config import EngineConfig, InferdConfig
from inferd.front.core_link import CoreLink, core_command
from inferd.log import configure_logging

logger = logging.getLogger(__name__)

HEAPS = 2  # the threads of gRPC and of the tokenizers hold the GIL, or work on one text at a time


def join_node(config: EngineConfig) -> int:
    """Run this machine's ranks for the engine of node 0. Raises StartupError."""
    from inferd.checkpoint.source import resolve_source
    from inferd.executor.node import run_node
    from inferd.models.registry import model_spec

    path = resolve_source(config.model.source, config.model.revision, lambda phase, fraction: None, model_spec)
    return run_node(msgspec.structs.replace(config, model=msgspec.structs.replace(config.model, path=str(path))))


def run(parsed: Parsed) -> int:
    """Serve; 0 after a drain. Raises StartupError."""
    config = build_config(parsed)
    configure_logging(config.engine.log_level, config.engine.log_format)
    check_config(config, bool(parsed.get("insecure")))
    for answer in parsed.answers:
        logger.warning(answer)
    if config.engine.parallel.node_rank > 0:
        return join_node(config.engine)
    limit_arenas(HEAPS)
    asyncio.run(serve(config))
    return 0


async def serve(config: InferdConfig) -> None:
    """Both processes load at the same time. Raises StartupError."""
    core = CoreLink()
    await core.spawn(core_command(config.engine.parallel))
    from inferd.server.app import serve as serve_model  # a good part of a second

    await serve_model(config, core)
