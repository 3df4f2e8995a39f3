"""Checks of the server's options that need no gRPC, so that a bad command line is refused at once."""

from __future__ import annotations

from inferd.address import split_address
from inferd.config import ServerConfig
from inferd.errors import StartupError

UNIX = "unix:"


def check_tls(server: ServerConfig) -> None:
    """Raises StartupError for a set of options that makes no sense."""
    if bool(server.tls_cert) != bool(server.tls_key):
        raise StartupError("--tls-cert and --tls-key come together")
    if server.tls_client_ca and not server.tls_cert:
        raise StartupError("--tls-client-ca needs --tls-cert and --tls-key")


def admin_address(where: str) -> tuple[str, int]:
    """Host and port of --admin-listen. Raises StartupError."""
    try:
        return split_address(where)
    except ValueError as error:
        raise StartupError(f"--admin-listen must be HOST:PORT or unix:PATH: {error}") from None
