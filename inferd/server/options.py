"""Checks of the server's options that need no gRPC, so that a bad command line is refused at once."""

from __future__ import annotations

from inferd.config import ServerConfig
from inferd.errors import StartupError

UNIX = "unix:"


def check_tls(server: ServerConfig) -> None:
    """Raises StartupError for a set of options that makes no sense."""
    if bool(server.tls_cert) != bool(server.tls_key):
        raise StartupError("--tls-cert and --tls-key come together")
    if server.tls_client_ca and not server.tls_cert:
        raise StartupError("--tls-client-ca needs --tls-cert and --tls-key")


def split_address(where: str) -> tuple[str, int]:
    """`127.0.0.1:50052`, `[::1]:50052` -> host, port. Raises StartupError."""
    host, _, port = where.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise StartupError(f"--admin-listen must be HOST:PORT or unix:PATH, got {where!r}")
    return host.strip("[]"), int(port)
