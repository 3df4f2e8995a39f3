"""Parsed flags -> InferdConfig, and the checks that need more than one flag."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from inferd.address import bare_host
from inferd.cli.arguments import Parsed
from inferd.config import InferdConfig, ParallelConfig, ServerConfig
from inferd.errors import StartupError
from inferd.server.keys import admin_ring, data_ring, load_keys
from inferd.server.options import UNIX, admin_address, check_tls


def build_config(parsed: Parsed) -> InferdConfig:
    """The configuration of a daemon. The model's local path is still empty: finding it may mean fetching it."""
    tree: dict[str, Any] = {"engine": {"model": {"path": ""}}}
    for flag in parsed.command.all_flags:
        if flag.field is not None and flag.name in parsed.values:
            *parents, name = flag.field.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = parsed.values[flag.name]
    return msgspec.convert(tree, InferdConfig)


def check_config(config: InferdConfig, insecure: bool) -> None:
    """Refuse what cannot work. Raises StartupError."""
    scheduler = config.engine.scheduler
    if scheduler.max_num_batched_tokens < scheduler.max_num_seqs:
        raise StartupError(
            f"--max-num-batched-tokens ({scheduler.max_num_batched_tokens}) must be at least "
            f"--max-num-seqs ({scheduler.max_num_seqs}): every running sequence computes one token a step"
        )
    check_nodes(config.engine.parallel)
    check_access(config.server, insecure)


def check_nodes(parallel: ParallelConfig) -> None:
    """Refuse a node that cannot be part of the group. Raises StartupError."""
    if parallel.node_rank >= parallel.nnodes:
        raise StartupError(f"--node-rank {parallel.node_rank} must be below --nnodes {parallel.nnodes}")
    if parallel.nnodes > 1 and not parallel.master_port:
        raise StartupError("--nnodes above 1 needs a --master-port above 0: every machine must know it")
    if parallel.nnodes > 1 and is_loopback(parallel.master_addr):
        raise StartupError("--nnodes above 1 needs --master-addr, an address of node 0 that the other machines reach")


def check_access(server: ServerConfig, insecure: bool) -> None:
    """Refuse to listen beyond this machine for everybody. Raises StartupError."""
    check_tls(server)
    keys = load_keys(server)
    is_public = not is_loopback(server.host)
    if is_public and not (data_ring(server, keys) or server.tls_client_ca or insecure):
        raise StartupError(
            f"--host {server.host} is reachable from other machines: give --api-key, --api-key-file or "
            "--tls-client-ca, or --insecure to mean it"
        )
    if server.admin_listen is None or server.admin_listen.startswith(UNIX):
        return
    host, _ = admin_address(server.admin_listen)
    if not (is_loopback(host) or admin_ring(keys) or server.tls_client_ca or insecure):
        raise StartupError(
            f"--admin-listen {server.admin_listen} is reachable from other machines: give --admin-api-key or "
            "--tls-client-ca, or --insecure to mean it"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone; names but localhost count as public."""
    try:
        return ipaddress.ip_address(bare_host(host)).is_loopback
    except ValueError:
        return host == "localhost"
