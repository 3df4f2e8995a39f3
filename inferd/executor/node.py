"""What `inferd serve` does on a machine other than node 0: start this node's ranks for the engine there, again and
again as engines come and go, until it is told to stop. Loads no torch."""

from __future__ import annotations

import logging
import signal
import socket
import time
from pathlib import Path
from types import FrameType

from inferd.address import join_address
from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.wire import Challenge, JoinNode, Refused, Welcome, encode, local_environment, proof, receive

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
RETRY_S = 0.5
REMIND_AFTER_S = 10.0


class Stopped(Exception):
    """SIGTERM or SIGINT."""


def run_node(config: EngineConfig) -> int:
    """0 after a signal. Raises StartupError when node 0 refuses this one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    parallel, path = config.parallel, config.model.path
    environment = local_environment(open_checkpoint(Path(path), with_vocabulary=False).fingerprint)
    address = join_address(parallel.master_addr, parallel.master_port)
    processes = RankProcesses()
    try:
        while True:
            with _connect(parallel.master_addr, parallel.master_port, parallel.node_rank) as sock:
                nonce = receive(sock, Challenge).nonce
                who = f"node {parallel.node_rank}"
                sock.sendall(encode(JoinNode(parallel.node_rank, environment, proof(nonce, who))))
                _serve(sock, processes, address, path)
            time.sleep(RETRY_S)
    except Stopped:
        return 0
    finally:
        processes.kill()


def _serve(sock: socket.socket, processes: RankProcesses, address: str, path: str) -> None:
    """Start the ranks that node 0 names, and end them when it leaves."""
    try:
        answer = receive(sock, Welcome | Refused)  # type: ignore[arg-type]  # a union is no type
        if isinstance(answer, Refused):
            raise StartupError(answer.message)
        assert isinstance(answer, Welcome), "the decoder yields nothing else"
        for rank in answer.ranks:
            processes.start_remote(rank, address, ["--model", path])
        logger.info("ranks %d to %d are started for %s", answer.ranks[0], answer.ranks[-1], address)
        sock.recv(1)  # nothing comes: it returns when the engine is gone
    except (OSError, EOFError, ValueError) as error:
        logger.warning("the connection to %s broke: %s", address, error)
    logger.info("the engine at %s is gone", address)
    processes.kill()


def _connect(host: str, port: int, node: int) -> socket.socket:
    """Try until node 0 is there."""
    reminded = 0.0
    while True:
        try:
            sock = socket.create_connection((host, port), CONNECT_TIMEOUT_S)
        except OSError as error:
            if time.monotonic() - reminded >= REMIND_AFTER_S:
                reminded = time.monotonic()
                logger.info("node %d waits for node 0 at %s:%d (%s)", node, host, port, error)
            time.sleep(RETRY_S)
        else:
            sock.settimeout(None)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
