"""Where workers and nodes of other machines come in: they prove that they have the cluster's key. Loads no torch."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from typing import Literal

from inferd.address import join_address
from inferd.errors import StartupError
from inferd.executor.wire import Challenge, JoinNode, JoinRank, encode, is_proof, receive

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0
NONCE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Guest:
    """Who came in, and from where."""

    sock: socket.socket
    message: JoinNode | JoinRank

    @property
    def host(self) -> str:
        return str(self.sock.getpeername()[0])


class RankListener:
    """Listens on one address, not on all. accept() returns soon, so that its caller can say what it waits for."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        family: Literal[socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {join_address(host, port)} for other ranks: {error.strerror}"
            ) from None
        self._listener.settimeout(timeout_s)
        self.port = int(self._listener.getsockname()[1])

    def accept(self) -> Guest | None:
        """The next that proves it belongs here; None after the timeout or for one that does not."""
        try:
            sock, peer = self._listener.accept()
        except TimeoutError:
            return None
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        nonce = os.urandom(NONCE_BYTES)
        try:
            sock.sendall(encode(Challenge(nonce)))
            message = receive(sock, JoinNode | JoinRank)  # type: ignore[arg-type]  # a union is no type
        except (OSError, EOFError, ValueError) as error:
            logger.warning("a connection from %s was no rank's: %s", peer[0], error)
            sock.close()
            return None
        assert isinstance(message, JoinNode | JoinRank), "the decoder yields nothing else"
        who = f"node {message.node}" if isinstance(message, JoinNode) else f"rank {message.rank}"
        if not is_proof(message.proof, nonce, who):
            logger.warning("%s from %s has another INFERD_CLUSTER_KEY", who, peer[0])
            sock.close()
            return None
        sock.settimeout(None)
        return Guest(sock, message)

    def close(self) -> None:
        self._listener.close()
