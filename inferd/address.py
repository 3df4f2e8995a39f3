"""Hosts and ports as one text and apart. An IPv6 address holds colons, so beside a port it stands in brackets."""

from __future__ import annotations


def join_address(host: str, port: int | str) -> str:
    """`127.0.0.1`, 80 -> `127.0.0.1:80`; `::1`, 80 -> `[::1]:80`."""
    host = bare_host(host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """`[::1]:80` -> `::1`, 80. Raises ValueError for what is no HOST:PORT, such as an IPv6 address without brackets."""
    host, _, port = address.rpartition(":")
    is_port = port.isascii() and port.isdigit() and int(port) < 65536
    if not bare_host(host) or not is_port or (":" in host and bare_host(host) == host):
        raise ValueError(f"expected HOST:PORT, an IPv6 address in brackets, got {address!r}")
    return bare_host(host), int(port)


def bare_host(host: str) -> str:
    """Without the brackets, as sockets want it."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
