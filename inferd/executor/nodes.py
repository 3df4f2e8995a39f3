"""Several machines without Ray: node 0 has the engine and its own ranks, the others join it and start theirs."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Sequence

from inferd.address import join_address
from inferd.config import ParallelConfig
from inferd.executor.base import Progress
from inferd.executor.rank_listener import Guest, RankListener
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.seats import Seat
from inferd.executor.wire import Environment, JoinNode, JoinRank, Refused, Welcome, cluster_key, encode

logger = logging.getLogger(__name__)

ACCEPT_TIMEOUT_S = 0.2
REMIND_AFTER_S = 10.0


class NodesLauncher:
    """Runs on node 0. Node k has ranks k * n, .., k * n + n - 1."""

    def __init__(self, parallel: ParallelConfig, environment: Environment) -> None:
        self._parallel = parallel
        self._environment = environment
        self._per_node = parallel.world_size // parallel.nnodes
        self._processes = RankProcesses()
        self._nodes: dict[int, socket.socket] = {}
        self._seats: dict[int, Seat] = {}

    def start(self, progress: Progress) -> Sequence[Seat]:
        """Waits for the other nodes, however long they take. Raises StartupError when it cannot listen."""
        parallel, size = self._parallel, self._parallel.world_size
        listener = RankListener(parallel.master_addr, parallel.master_port, ACCEPT_TIMEOUT_S, cluster_key())
        try:
            for rank in range(self._per_node):
                sock = self._processes.start_local(rank)
                self._seats[rank] = Seat(sock, rank, self._per_node, parallel.master_addr)
            reminded = 0.0
            while len(self._seats) < size:
                if time.monotonic() - reminded >= REMIND_AFTER_S:
                    reminded = time.monotonic()
                    self._remind()
                if (guest := listener.accept()) is not None:
                    self._receive(guest)
                    progress("workers", len(self._seats) / (size + 1))
        finally:
            listener.close()
        return [self._seats[rank] for rank in range(size)]

    def endings(self) -> str:
        return self._processes.endings()

    def stop(self) -> None:
        """The other nodes end their ranks when their connection closes."""
        self._leave_nodes()
        self._processes.stop()

    def kill(self) -> None:
        self._leave_nodes()
        self._processes.kill()

    def _remind(self) -> None:
        missing = sorted(set(range(1, self._parallel.nnodes)) - set(self._nodes))
        if missing:
            address = join_address(self._parallel.master_addr, self._parallel.master_port)
            logger.info("waiting at %s for node %s", address, ", ".join(map(str, missing)))

    def _receive(self, guest: Guest) -> None:
        match guest.message:
            case JoinNode(node=node):
                self._receive_node(guest, node, guest.message.environment)
            case JoinRank(rank=rank):
                if rank // self._per_node in self._nodes and 0 <= rank < self._parallel.world_size:
                    self._seats[rank] = Seat(guest.sock, rank % self._per_node, self._per_node, guest.host)
                else:
                    guest.sock.close()

    def _receive_node(self, guest: Guest, node: int, environment: Environment) -> None:
        """Let a node in that is like this one. One that is there already has come back: its ranks start again."""
        reason = ""
        if not 0 < node < self._parallel.nnodes:
            reason = (
                f"--node-rank {node} of --nnodes {self._parallel.nnodes}: 1 to {self._parallel.nnodes - 1} may join"
            )
        elif differences := environment.differences(self._environment):
            reason = f"node {node} is not like node 0: {'; '.join(differences)}"
        if reason:
            logger.error("%s was refused: %s", guest.host, reason)
            _answer(guest, Refused(reason))
            guest.sock.close()
            return
        ranks = list(range(node * self._per_node, (node + 1) * self._per_node))
        if node in self._nodes:
            self._nodes.pop(node).close()
            for rank in ranks:
                if rank in self._seats:
                    self._seats.pop(rank).sock.close()
        self._nodes[node] = guest.sock
        _answer(guest, Welcome(ranks))
        logger.info("node %d (%s) joined with ranks %d to %d", node, guest.host, ranks[0], ranks[-1])

    def _leave_nodes(self) -> None:
        for sock in self._nodes.values():
            sock.close()
        self._nodes.clear()


def _answer(guest: Guest, message: Welcome | Refused) -> None:
    """A guest that has left already comes again, if it is a node's."""
    try:
        guest.sock.sendall(encode(message))
    except OSError as error:
        logger.warning("%s left before it was answered: %s", guest.host, error)
