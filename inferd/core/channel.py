"""FrontChannel: the core's end of the socket to the front. One thread reads, so that the front's death and a request
for a state dump are noticed whatever the loop is doing; anyone may send."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import msgspec

from inferd.config import EngineConfig
from inferd.core.constraints import MatcherBuilt
from inferd.messages import (
    HEADER,
    MAX_FRAME_BYTES,
    DumpState,
    FrameDecoder,
    StateDump,
    ToCore,
    ToFront,
    encode_frame,
)

logger = logging.getLogger(__name__)

READ_BYTES = 1 << 18
SEND_TIMEOUT_S = 60.0

Describe = Callable[[bool], dict[str, bytes]]  # include_tokens -> sections


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """In the inbox when the executor dies while the loop waits for messages."""

    error: Exception


class FrontGone(Exception):
    """The front closed the socket, or has not read for SEND_TIMEOUT_S: nobody is left to work for."""


class FrontChannel:
    """inbox holds the front's messages in order, then None when it is gone. State dumps are answered by the reader."""

    def __init__(self, sock: socket.socket, describe: Describe, on_eof: Callable[[], None] | None = None) -> None:
        self.inbox: SimpleQueue[ToCore | MatcherBuilt | WorkerLost | None] = SimpleQueue()
        self.describe = describe
        self._socket = sock
        self._on_eof = on_eof
        self._send_lock = threading.Lock()
        seconds, fraction = divmod(SEND_TIMEOUT_S, 1.0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(fraction * 1e6)))

    def start(self) -> None:
        """Read from now on. The first frame, the configuration, has been received before."""
        threading.Thread(target=self._read, name="front-reader", daemon=True).start()

    def send(self, message: ToFront) -> None:
        """Send one message. Raises FrontGone, and ValueError when the message does not fit a frame."""
        frame = encode_frame(message)
        try:
            with self._send_lock:
                self._socket.sendall(frame)
        except OSError as error:
            raise FrontGone(str(error)) from error

    def _read(self) -> None:
        decoder = FrameDecoder(ToCore)
        try:
            while data := self._socket.recv(READ_BYTES):
                for message in decoder.feed(data):
                    self._dispatch(message)
        except (OSError, FrontGone) as error:
            logger.debug("the front's socket failed: %s", error)
        except ValueError as error:
            logger.error("the front sent a malformed frame: %s", error)
        self.inbox.put(None)
        if self._on_eof is not None:
            self._on_eof()

    def _dispatch(self, message: object) -> None:
        if isinstance(message, DumpState):
            self._answer(message)
        else:
            self.inbox.put(message)  # type: ignore[arg-type]  # the decoder yields nothing but ToCore

    def _answer(self, question: DumpState) -> None:
        """A dump that fails, or fits no frame, costs its sections and says why: this thread must go on reading."""
        try:
            self.send(StateDump(question.token, self.describe(question.include_tokens)))
        except (ValueError, RuntimeError, LookupError) as error:  # too large, or changed under the eyes of this thread
            logger.exception("the state dump failed")
            reason = msgspec.json.encode(f"the state dump failed: {error}")
            self.send(StateDump(question.token, {"core_error": reason}))


def receive_config(sock: socket.socket) -> EngineConfig:
    """Read the first frame, and not a byte more. Raises FrontGone, and ValueError for anything else than a config."""
    (length,) = HEADER.unpack(_receive_exactly(sock, HEADER.size))
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
    return msgspec.msgpack.decode(_receive_exactly(sock, length), type=EngineConfig)


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            part = sock.recv(size - len(data))
        except OSError as error:
            raise FrontGone(str(error)) from error
        if not part:
            raise FrontGone("closed before the configuration was sent")
        data += part
    return bytes(data)
