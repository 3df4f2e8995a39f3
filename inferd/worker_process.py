"""`python -m inferd.worker_process`: one rank of a model, spawned by the engine core, a node or a Ray actor."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from collections.abc import Sequence

from inferd.address import split_address
from inferd.core.lifetime import follow_parent, settle_garbage_collector
from inferd.executor.rank import run_rank
from inferd.executor.wire import HANDSHAKE_BYTES, Challenge, JoinRank, Setup, cluster_key, encode, proof, receive
from inferd.log import configure_logging

logger = logging.getLogger("inferd.worker")

CONNECT_TIMEOUT_S = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """The life of a worker; returns the exit status: 0 when the core wanted it to leave, else 1."""
    parser = argparse.ArgumentParser(prog="inferd.worker_process", description=__doc__)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="an inherited socket to the engine core")
    where.add_argument("--connect", metavar="HOST:PORT", help="where the engine core listens")
    parser.add_argument("--rank", type=int, default=0, help="with --connect: which rank this is")
    parser.add_argument("--model", help="the checkpoint's path here, where it is not the engine core's")
    options = parser.parse_args(argv)
    follow_parent()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # it warns of every address without a name
    try:
        sock = socket.socket(fileno=options.fd) if options.connect is None else join(options.connect, options.rank)
        setup = receive(sock, Setup)
    except (OSError, EOFError, ValueError) as error:
        print(f"inferd worker {options.rank}: no engine core: {error}", file=sys.stderr)  # noqa: T201
        return 1
    config = setup.config
    configure_logging(config.log_level, config.log_format, process=f"rank {setup.rank}")
    settle_garbage_collector()
    return run_rank(sock, setup, options.model)


def join(address: str, rank: int) -> socket.socket:
    """Connect to the core and show that we belong to it. Raises OSError, EOFError and ValueError."""
    sock = socket.create_connection(split_address(address), CONNECT_TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    nonce = receive(sock, Challenge, HANDSHAKE_BYTES).nonce
    sock.sendall(encode(JoinRank(rank, proof(cluster_key(), nonce, f"rank {rank}"))))
    sock.settimeout(None)
    return sock


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(status)  # tearing down torch takes seconds, and its groups may wait for peers that are gone
