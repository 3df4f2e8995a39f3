"""Worker processes of this machine: started, and ended to the last one."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from inferd.executor.wire import KEY_VARIABLE

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-X", "faulthandler", "-m", "inferd.worker_process")
EXIT_PATIENCE_S = 2.0
KILL_PATIENCE_S = 10.0
REAP_PATIENCE_S = 0.2


class RankProcesses:
    """They stay in this process' group, so that one signal reaches all, and die with it."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start_local(self, rank: int) -> socket.socket:
        """A worker at the other end of a socket pair; returns our end."""
        ours, theirs = socket.socketpair()
        with theirs:
            descriptor = theirs.fileno()
            command = [*COMMAND, "--fd", str(descriptor)]
            self._processes[rank] = subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL)
        return ours

    def start_remote(self, rank: int, address: str, key: str, arguments: Sequence[str] = ()) -> None:
        """A worker that connects to HOST:PORT, with the key that opens it."""
        command = [*COMMAND, "--connect", address, "--rank", str(rank), *arguments]
        environment = os.environ | {KEY_VARIABLE: key}
        self._processes[rank] = subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)

    @property
    def is_whole(self) -> bool:
        """Whether all that were started still run."""
        return all(process.poll() is None for process in self._processes.values())

    def endings(self) -> str:
        """How those that have ended did: `rank 1 (pid 7) was killed by SIGKILL`. A socket closes a moment before."""
        deadline = time.monotonic() + REAP_PATIENCE_S
        while self.is_whole and time.monotonic() < deadline:
            time.sleep(0.01)
        ended = {rank: process for rank, process in self._processes.items() if process.poll() is not None}
        return "; ".join(f"rank {rank} (pid {each.pid}) {_ending(each)}" for rank, each in ended.items())

    def stop(self) -> None:
        """Wait a little for those that were told to leave, end the others, reap all that can be ended: one that is
        stuck in a driver's call is not, and nobody waits for it for ever."""
        for process in self._wait(EXIT_PATIENCE_S).values():
            process.kill()
        for rank, process in self._wait(KILL_PATIENCE_S).items():
            logger.error("rank %d (pid %d) does not end when it is killed: it is left behind", rank, process.pid)
        self._processes.clear()

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
        self.stop()

    def _wait(self, seconds: float) -> dict[int, subprocess.Popen[bytes]]:
        """Those that still run after that time at most."""
        deadline = time.monotonic() + seconds
        for process in self._processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
        return {rank: process for rank, process in self._processes.items() if process.poll() is None}


def _ending(process: subprocess.Popen[bytes]) -> str:
    code = process.returncode
    return f"exited with code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
