"""`inferd serve MODEL`: the gRPC daemon, until it is drained."""

from __future__ import annotations

import asyncio
import logging

from inferd.cli.arguments import Parsed
from inferd.cli.build import build_config, check_config
from inferd.config import InferdConfig
from inferd.log import configure_logging

logger = logging.getLogger(__name__)


def run(parsed: Parsed) -> int:
    """Serve; 0 after a drain. Raises StartupError."""
    config = build_config(parsed, path="")
    configure_logging(config.engine.log_level, config.engine.log_format)
    check_config(config, bool(parsed.get("insecure")))
    for answer in parsed.answers:
        logger.warning(answer)
    return serve(build_config(parsed, path=locate(config)))


def locate(config: InferdConfig) -> str:
    """The local path of the model, fetched if need be. Raises StartupError."""
    from inferd.checkpoint.source import resolve_source

    model = config.engine.model
    return str(resolve_source(model.source, model.revision, log_progress))


def log_progress(phase: str, fraction: float) -> None:
    logger.info("%s: %.0f %%", phase, 100 * fraction)


def serve(config: InferdConfig) -> int:
    from inferd.server.app import serve as serve_until_drained

    asyncio.run(serve_until_drained(config))
    return 0
