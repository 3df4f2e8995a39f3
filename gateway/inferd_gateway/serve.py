"""The gateway's process: read the options, serve until SIGTERM."""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import sys

import uvicorn

from inferd_gateway.app import create_app
from inferd_gateway.http_protocol import server_options, tls_options
from inferd_gateway.log import configure_logging
from inferd_gateway.settings import SettingsError, check, load


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 2 for an option that cannot be used."""
    try:
        settings = load(sys.argv[1:] if argv is None else argv, os.environ)
        check(settings)
        app = create_app(settings)
    except SettingsError as error:
        sys.stderr.write(f"inferd-gateway: {error}\n")
        return 2
    config = uvicorn.Config(
        app,
        host=settings.host.strip("[]"),
        port=settings.port,
        log_level=settings.uvicorn_log_level,
        timeout_graceful_shutdown=int(settings.shutdown_timeout),
        **tls_options(settings),
        **server_options(),
    )
    try:
        config.load()  # reads the certificate
    except (OSError, ssl.SSLError) as error:
        sys.stderr.write(f"inferd-gateway: ssl-certfile: {error}\n")
        return 2
    configure_logging(settings.uvicorn_log_level, settings.log_format)
    # The server raises a signal again once it has ended well: both kinds then end this process with 0.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
    return 0
