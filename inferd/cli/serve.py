"""`inferd serve MODEL`: the gRPC daemon, until it is drained."""

from __future__ import annotations

import asyncio
import logging

from inferd.cli.arguments import Parsed
from inferd.cli.build import build_config, check_config
from inferd.log import configure_logging

logger = logging.getLogger(__name__)


def run(parsed: Parsed) -> int:
    """Serve; 0 after a drain. Raises StartupError."""
    config = build_config(parsed)
    configure_logging(config.engine.log_level, config.engine.log_format)
    check_config(config, bool(parsed.get("insecure")))
    for answer in parsed.answers:
        logger.warning(answer)
    from inferd.server.app import serve  # after the checks: it takes a good part of a second to load

    asyncio.run(serve(config))
    return 0
