"""`inferd-gateway`: read the options, serve until SIGTERM."""

from __future__ import annotations

import os
import sys

import uvicorn

from inferd_gateway.app import create_app
from inferd_gateway.http_protocol import server_options
from inferd_gateway.log import configure_logging
from inferd_gateway.settings import SettingsError, load


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 2 for an option that cannot be used."""
    try:
        settings = load(sys.argv[1:] if argv is None else argv, os.environ)
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"inferd-gateway: {error}\n")
        return 2
    configure_logging(settings.uvicorn_log_level, settings.log_format)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level=settings.uvicorn_log_level,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
        **server_options(),
    )
    uvicorn.Server(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
