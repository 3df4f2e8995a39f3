"""How the core process is tied to the front: it outlives it by two seconds at most, and no signal meant for the front
ends it early."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1
EXIT_GRACE_S = 1.5


def follow_parent() -> None:
    """Die with the parent (Linux), and leave the stop signals of terminals and supervisors to it: it drains first."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def exit_after_grace() -> None:
    """For the thread that saw the front leave: end the process, whatever its other threads are stuck in."""
    time.sleep(EXIT_GRACE_S)
    os._exit(1)


def settle_garbage_collector() -> None:
    """Keep collections out of the steps: what start-up built stays, and a step leaves no cycles behind. Of old cycles
    a start leaves some 20 objects: not worth the 0.1 s of a full collection."""
    gc.collect(1)
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
