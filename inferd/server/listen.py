"""Addresses to listen on: taken in a way that says why when they cannot be had."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import grpc

from inferd.address import bare_host, join_address
from inferd.errors import StartupError
from inferd.server.options import UNIX, admin_address


def bind(server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None = None) -> int:
    """Take the port; returns it (port 0: a free one). Raises StartupError in words."""
    host = bare_host(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:  # the library's own error does not say why
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return add_port(server, join_address(host, port), credentials)
    except OSError as error:
        cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
        raise StartupError(f"port {port} on {host} {cause}") from error
    except RuntimeError as error:
        raise StartupError(f"port {port} on {host} cannot be opened: {error}") from error


def add_port(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    if credentials is None:
        return server.add_insecure_port(address)
    return server.add_secure_port(address, credentials)


def listen_admin(server: grpc.aio.Server, where: str, credentials: grpc.ServerCredentials | None) -> str:
    """Listen on HOST:PORT, or on unix:PATH, which is ours alone (mode 0600). Returns the address.

    Raises StartupError.
    """
    if not where.startswith(UNIX):
        host, port = admin_address(where)
        return join_address(host, bind(server, host, port, credentials))
    path = Path(where.removeprefix(UNIX))
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not answers(path):
            path.unlink()  # of a daemon that was killed
        before = os.umask(0o177)
        try:
            server.add_insecure_port(where)  # the file system guards it
        finally:
            os.umask(before)
    except (OSError, RuntimeError) as error:
        raise StartupError(f"--admin-listen {where} cannot be opened: {error}") from error
    return where


def answers(path: Path) -> bool:
    """Whether somebody listens on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
