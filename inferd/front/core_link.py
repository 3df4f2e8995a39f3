"""One engine-core process and the socket to it, from spawn to death. Knows frames, not what they mean."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from inferd.config import EngineConfig, ParallelConfig
from inferd.messages import FrameDecoder, ToCore, ToFront, encode_frame

logger = logging.getLogger("inferd.engine")

# faulthandler: a core that is aborted by the watchdog, or crashes in native code, writes the stacks of its threads.
CORE_COMMAND = (sys.executable, "-P", "-X", "faulthandler", "-m", "inferd.core_process")
EOF_GRACE_S = 1.0  # between the end of the process and the end of its socket, whichever comes first
ABORT_GRACE_S = 2.0  # between SIGABRT (stacks are written) and SIGKILL


def core_command(parallel: ParallelConfig) -> Sequence[str]:
    """A core that computes itself loads torch before it knows what; one with workers never does."""
    computes = parallel.world_size == 1 and parallel.backend in ("auto", "local")
    return (*CORE_COMMAND, "--load-torch") if computes else CORE_COMMAND


class CoreLink(asyncio.Protocol):
    """spawn() starts `command --fd N` in a session of its own, which loads what any core needs; begin() sends the
    configuration and hands every message to on_message.

    The session keeps a terminal's Ctrl-C away from the core (the front drains first) and lets one signal reach
    whatever the core spawned.
    """

    def __init__(self) -> None:
        self._on_message: Callable[[ToFront], None] = lambda message: None  # until begin() there is none
        self._decoder = FrameDecoder(ToFront)
        self._eof = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._kill_reason: str | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def spawn(self, command: Sequence[str]) -> None:
        """Start the process; returns once it has been started."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        with theirs:
            self._transport, _ = await loop.create_unix_connection(lambda: self, sock=ours)
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *command, "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()], start_new_session=True
                )
            except BaseException:
                self._transport.abort()
                raise

    def begin(self, config: EngineConfig, on_message: Callable[[ToFront], None]) -> None:
        """Say what is to be run."""
        self._on_message = on_message
        self.send(config)

    def send(self, message: EngineConfig | ToCore) -> None:
        """Queue one message. What is sent to a core that just died is lost, like the core."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    async def wait(self) -> str:
        """Wait until process and socket are gone, and end what the process left behind. Returns how it ended."""
        assert self._process is not None
        code = await self._process.wait()
        with suppress(TimeoutError):
            async with asyncio.timeout(EOF_GRACE_S):
                await self._eof.wait()  # its last words may still be in the socket
        return self._kill_reason or describe_exit(code)

    def kill(self, reason: str) -> None:
        """End the core at once; SIGABRT first, so that a hung one writes its stacks."""
        if self._kill_reason is None:
            self._kill_reason = reason
            self._signal(signal.SIGABRT)
            asyncio.get_running_loop().call_later(ABORT_GRACE_S, self._signal, signal.SIGKILL)

    async def end(self) -> None:
        """destroy(), and wait for it."""
        self.destroy()
        await self.wait()

    def destroy(self) -> None:
        """End at once the process, what it spawned, and the socket; idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def data_received(self, data: bytes) -> None:
        try:
            messages = self._decoder.feed(data)
        except ValueError as error:
            self.kill(f"sent a malformed frame: {error}")
            return
        for message in messages:
            self._on_message(message)  # type: ignore[arg-type]  # the decoder yields nothing but ToFront

    def connection_lost(self, exc: Exception | None) -> None:
        self._eof.set()
        if self._process is not None and self._process.returncode is None:
            asyncio.get_running_loop().call_later(EOF_GRACE_S, self._kill_survivor)

    def _kill_survivor(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self.kill("closed its socket")


def describe_exit(code: int) -> str:
    """`exited with code 3`, `was killed by SIGKILL`."""
    if code >= 0:
        return f"exited with code {code}"
    hint = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{hint}"
