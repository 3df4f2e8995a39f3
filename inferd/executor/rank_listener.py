"""Where workers and nodes of other machines come in: they prove that they have the key. Loads no torch."""

from __future__ import annotations

import ipaddress
import logging
import os
import selectors
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from inferd.address import join_address
from inferd.errors import StartupError
from inferd.executor.wire import (
    HANDSHAKE_BYTES,
    KEY_VARIABLE,
    Challenge,
    JoinNode,
    JoinRank,
    Refused,
    encode,
    frame_length,
    is_proof,
)
from inferd.messages import HEADER

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 5.0  # from the connection to the proof
MAX_HANDSHAKES = 64  # at once; one more ends the oldest
NONCE_BYTES = 16

_decoder = msgspec.msgpack.Decoder(JoinNode | JoinRank)


@dataclass(frozen=True, slots=True)
class Guest:
    """Who came in, and from where."""

    sock: socket.socket
    message: JoinNode | JoinRank
    host: str


@dataclass(eq=False, slots=True)
class Handshake:
    """A connection that has proved nothing yet. Its first frame is read as it comes, and not a byte more."""

    sock: socket.socket
    peer: str
    nonce: bytes
    deadline: float
    received: bytearray = field(default_factory=bytearray)

    def read(self) -> JoinNode | JoinRank | None:
        """What is said; None while something is missing. Raises EOFError, OSError, and ValueError for anything else."""
        missing = self._missing()
        part = self.sock.recv(missing)
        if not part:
            raise EOFError("the other end closed the connection")
        self.received += part
        return None if self._missing() else _decoder.decode(self.received[HEADER.size :])

    def _missing(self) -> int:
        if len(self.received) < HEADER.size:
            return HEADER.size - len(self.received)
        return HEADER.size + frame_length(bytes(self.received[: HEADER.size]), HANDSHAKE_BYTES) - len(self.received)


class RankListener:
    """Listens on one address, not on all. accept() returns soon, so that its caller can say what it waits for.

    Handshakes go on beside each other: whoever connects and says nothing, or little, holds nobody up.
    """

    def __init__(self, host: str, port: int, timeout_s: float, key: str) -> None:
        """Raises StartupError when it cannot listen, and when everybody who reaches the address could join."""
        family: Literal[socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6]
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=64)
        except OSError as error:
            raise StartupError(
                f"cannot listen on {join_address(host, port)} for other ranks: {error.strerror}"
            ) from None
        address, self.port = self._listener.getsockname()[:2]
        if not key and not ipaddress.ip_address(address).is_loopback:
            self._listener.close()
            raise StartupError(
                f"{KEY_VARIABLE} is not set, and others reach {host}: set it to the same secret on every node, so that "
                f"nobody else can join as a rank"
            )
        self._key = key
        self._timeout_s = timeout_s
        self._listener.setblocking(False)
        self._handshakes: dict[Handshake, None] = {}  # oldest first
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, None)

    def accept(self) -> Guest | None:
        """The next that proves it belongs here; None after the timeout, or sooner."""
        until = time.monotonic() + self._timeout_s
        while (now := time.monotonic()) < until:
            self._end_late(now)
            for key, _ in self._selector.select(min([until, *(each.deadline for each in self._handshakes)]) - now):
                if key.data is None:
                    self._begin()
                elif key.data in self._handshakes and (guest := self._go_on(key.data)) is not None:
                    return guest
        return None

    def close(self) -> None:
        for handshake in list(self._handshakes):
            self._forget(handshake)
            handshake.sock.close()
        self._selector.close()
        self._listener.close()

    def _begin(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except OSError:  # it has left again
            return
        sock.setblocking(False)
        handshake = Handshake(sock, peer[0], os.urandom(NONCE_BYTES), time.monotonic() + HANDSHAKE_TIMEOUT_S)
        if len(self._handshakes) == MAX_HANDSHAKES:
            self._end(next(iter(self._handshakes)), "too many came at once")
        self._handshakes[handshake] = None
        self._selector.register(sock, selectors.EVENT_READ, handshake)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(encode(Challenge(handshake.nonce)))  # an empty buffer takes it at once
        except OSError as error:
            self._end(handshake, str(error))

    def _go_on(self, handshake: Handshake) -> Guest | None:
        try:
            message = handshake.read()
        except BlockingIOError:
            return None
        except (OSError, EOFError, ValueError) as error:
            self._end(handshake, str(error))
            return None
        if message is None:
            return None
        who = f"node {message.node}" if isinstance(message, JoinNode) else f"rank {message.rank}"
        sock = handshake.sock
        self._forget(handshake)
        sock.setblocking(True)
        if is_proof(message.proof, self._key, handshake.nonce, who):
            return Guest(sock, message, handshake.peer)
        logger.warning("%s from %s has another %s", who, handshake.peer, KEY_VARIABLE)
        with sock, suppress(OSError):
            if isinstance(message, JoinNode):  # it would come again, for ever
                sock.sendall(encode(Refused(f"{KEY_VARIABLE} is not that of node 0")))
        return None

    def _end_late(self, now: float) -> None:
        for handshake in [each for each in self._handshakes if each.deadline <= now]:
            self._end(handshake, f"it proved nothing for {HANDSHAKE_TIMEOUT_S:g} s")

    def _end(self, handshake: Handshake, reason: str) -> None:
        logger.warning("a connection from %s was no rank's: %s", handshake.peer, reason)
        self._forget(handshake)
        handshake.sock.close()

    def _forget(self, handshake: Handshake) -> None:
        del self._handshakes[handshake]
        self._selector.unregister(handshake.sock)
