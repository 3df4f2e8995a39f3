"""What `inferd serve` does on a machine other than node 0: start this node's ranks for the engine there, again and
again as engines come and go, until it is told to stop. Loads no torch."""

from __future__ import annotations

import logging
import signal
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from inferd.address import join_address
from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.wire import (
    HANDSHAKE_BYTES,
    Challenge,
    Environment,
    JoinNode,
    Refused,
    Welcome,
    cluster_key,
    encode,
    local_environment,
    proof,
    receive,
)

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
JOIN_TIMEOUT_S = 30.0
WATCH_S = 1.0
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
    node = Node(config, environment)
    try:
        while True:
            with _connect(parallel.master_addr, parallel.master_port, parallel.node_rank) as sock:
                node.serve(sock)
            time.sleep(RETRY_S)
    except Stopped:
        return 0
    finally:
        node.leave()


class Node:
    """The ranks of this machine, and the key that lets them in."""

    def __init__(self, config: EngineConfig, environment: Environment) -> None:
        self._number = config.parallel.node_rank
        self._address = join_address(config.parallel.master_addr, config.parallel.master_port)
        self._path = config.model.path
        self._environment = environment
        self._key = cluster_key()
        self._processes = RankProcesses()

    def serve(self, sock: socket.socket) -> None:
        """Start the ranks that node 0 names, and end them when it leaves, whenever that is, or when one of them ends.
        Raises StartupError when node 0 refuses us."""
        try:
            ranks = self._join(sock)
            for rank in ranks:
                self._processes.start_remote(rank, self._address, self._key, ["--model", self._path])
            logger.info("ranks %d to %d are started for %s", ranks[0], ranks[-1], self._address)
            self._watch(sock)
        except (OSError, EOFError, ValueError) as error:
            logger.warning("the connection to %s broke: %s", self._address, error)
        self.leave()

    def leave(self) -> None:
        self._processes.kill()

    def _join(self, sock: socket.socket) -> list[int]:
        """The numbers of our ranks. Raises StartupError, and what a connection that breaks raises."""
        sock.settimeout(JOIN_TIMEOUT_S)
        nonce = receive(sock, Challenge, HANDSHAKE_BYTES).nonce
        answer = proof(self._key, nonce, f"node {self._number}")
        sock.sendall(encode(JoinNode(self._number, self._environment, answer)))
        welcome = receive(sock, Welcome | Refused, HANDSHAKE_BYTES)  # type: ignore[arg-type]  # a union is no type
        if isinstance(welcome, Refused):
            raise StartupError(welcome.message)
        assert isinstance(welcome, Welcome), "the decoder yields nothing else"
        return welcome.ranks

    def _watch(self, sock: socket.socket) -> None:
        """Until the engine is gone, or a rank is: node 0 waits for one that never came, unless we come again."""
        sock.settimeout(WATCH_S)
        while self._processes.is_whole:
            with suppress(TimeoutError):
                sock.recv(1)  # nothing comes: it returns when the engine is gone
                logger.info("the engine at %s is gone", self._address)
                return
        logger.warning("%s; all ranks of this node start again", self._processes.endings())


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
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return sock


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped
