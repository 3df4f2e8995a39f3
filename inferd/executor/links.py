"""The core's ends of the sockets to its workers: one thread reads them all, the loop's thread sends."""

from __future__ import annotations

import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

from inferd.errors import StartupError
from inferd.executor.base import ExecutorDead
from inferd.executor.wire import FromRank, RankFailed, Stacks, ToRank, encode
from inferd.messages import FrameDecoder

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 18
STACKS_PATIENCE_S = 2.0


class RankDied(Exception):
    """A worker's socket was closed, or said what is no message."""


class RankLinks:
    """One socket per rank. Messages of all of them come in one queue; the death of any ends it."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets
        self._inbox: SimpleQueue[tuple[int, FromRank | RankDied]] = SimpleQueue()
        self._on_death: Callable[[ExecutorDead], None] | None = None
        self._death: ExecutorDead | None = None
        self._lock = threading.Lock()  # of _on_death and _death
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._read, name="rank-reader", daemon=True)
        for sock in sockets:
            sock.setblocking(True)
        self._thread.start()

    @property
    def size(self) -> int:
        return len(self._sockets)

    def send(self, rank: int, message: ToRank) -> None:
        self._send(rank, encode(message))

    def broadcast(self, message: ToRank) -> None:
        """The same frame to every rank. What a dead one does not get is told by receive()."""
        frame = encode(message)
        for rank in range(len(self._sockets)):
            self._send(rank, frame)

    def receive(self, timeout_s: float | None = None) -> tuple[int, FromRank]:
        """(rank, its next message). Raises TimeoutError, ExecutorDead, and StartupError when a rank says so."""
        try:
            rank, message = self._inbox.get(timeout=timeout_s)
        except Empty:
            raise TimeoutError from None
        if isinstance(message, RankFailed) and message.is_startup:
            raise StartupError(message.message)
        if isinstance(message, RankFailed):
            raise ExecutorDead(f"rank {rank}: {message.message}")
        if isinstance(message, RankDied):
            raise ExecutorDead(f"rank {rank}: {message}")
        return rank, message

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        with self._lock:
            self._on_death = on_death
            if self._death is None:
                return
        on_death(self._death)

    def stacks(self, request: ToRank) -> dict[int, str]:
        """What each rank is doing, of those that answer in time."""
        self.broadcast(request)
        found: dict[int, str] = {}
        deadline = time.monotonic() + STACKS_PATIENCE_S
        while len(found) < len(self._sockets) and (left := deadline - time.monotonic()) > 0:
            try:
                rank, message = self._inbox.get(timeout=left)
            except Empty:
                break
            if isinstance(message, Stacks):
                found[rank] = message.text
        return found

    def close(self) -> None:
        """Close every socket: workers take that as the end."""
        with self._lock:
            self._on_death = None
        self._wake.close()
        self._thread.join()
        for sock in self._sockets:
            sock.close()

    def _send(self, rank: int, frame: bytes) -> None:
        try:
            self._sockets[rank].sendall(frame)
        except OSError as error:
            logger.debug("rank %d cannot be reached: %s", rank, error)

    def _read(self) -> None:
        decoders = [FrameDecoder(FromRank) for _ in self._sockets]
        with selectors.DefaultSelector() as selector, self._woken:
            selector.register(self._woken, selectors.EVENT_READ, None)
            for rank, sock in enumerate(self._sockets):
                selector.register(sock, selectors.EVENT_READ, rank)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        return
                    try:
                        self._take(key.data, decoders[key.data])
                    except (OSError, ValueError, EOFError) as error:
                        selector.unregister(key.fileobj)
                        self._report(key.data, str(error))

    def _take(self, rank: int, decoder: FrameDecoder) -> None:
        data = self._sockets[rank].recv(READ_BYTES)
        if not data:
            raise EOFError("died")
        for message in decoder.feed(data):
            self._inbox.put((rank, message))  # type: ignore[arg-type]  # the decoder yields nothing but FromRank

    def _report(self, rank: int, reason: str) -> None:
        self._inbox.put((rank, RankDied(reason)))
        with self._lock:
            first, self._death = self._death is None, ExecutorDead(f"rank {rank}: {reason}")
            on_death = self._on_death
        if first and on_death is not None:
            on_death(self._death)
