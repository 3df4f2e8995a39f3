"""Parsed flags -> InferdConfig, and the checks that need more than one flag."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import msgspec

from inferd.cli.arguments import Parsed
from inferd.config import InferdConfig, ParallelConfig
from inferd.errors import StartupError

# What the configuration can say and this build cannot do yet: (holds, message).
NOT_BUILT: tuple[tuple[Callable[[InferdConfig], bool], str], ...] = (
    (lambda config: config.engine.model.quantization is not None, "--quantization (a quantized checkpoint works)"),
)


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
    for holds, message in NOT_BUILT:
        if holds(config):
            raise StartupError(f"{message}: not built yet in this version")
    scheduler = config.engine.scheduler
    if scheduler.max_num_batched_tokens < scheduler.max_num_seqs:
        raise StartupError(
            f"--max-num-batched-tokens ({scheduler.max_num_batched_tokens}) must be at least "
            f"--max-num-seqs ({scheduler.max_num_seqs}): every running sequence computes one token a step"
        )
    check_nodes(config.engine.parallel)
    check_exposure(config.server.host, bool(config.server.api_keys), insecure)


def check_nodes(parallel: ParallelConfig) -> None:
    """Refuse a node that cannot be part of the group. Raises StartupError."""
    if parallel.node_rank >= parallel.nnodes:
        raise StartupError(f"--node-rank {parallel.node_rank} must be below --nnodes {parallel.nnodes}")
    if parallel.nnodes > 1 and is_loopback(parallel.master_addr):
        raise StartupError("--nnodes above 1 needs --master-addr, an address of node 0 that the other machines reach")


def check_exposure(host: str, has_key: bool, insecure: bool) -> None:
    """Refuse to listen beyond this machine without a key. Raises StartupError."""
    if not (has_key or insecure or is_loopback(host)):
        raise StartupError(f"--host {host} is reachable from other machines: give --api-key, or --insecure to mean it")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone; names but localhost count as public."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
