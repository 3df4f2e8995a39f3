"""Where the ranks of a model sit, and how their workers get there. Loads no torch."""

from __future__ import annotations

import glob
import importlib.util
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import Progress

RAY_CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # written by a Ray node of this machine

Backend = Literal["local", "multiprocess", "ray"]


@dataclass(frozen=True, slots=True)
class Seat:
    """A started worker: the socket to it, and what it is told of its machine (see wire.Setup)."""

    sock: socket.socket
    device_index: int
    num_local: int
    host: str


class Launcher(Protocol):
    """Starts the workers of a model, one per rank, and ends them (see group.Processes)."""

    def start(self, progress: Progress) -> Sequence[Seat]:
        """The seats by rank. Raises StartupError."""

    def endings(self) -> str: ...

    def stop(self) -> None: ...

    def kill(self) -> None: ...


def choose_backend(config: EngineConfig) -> Backend:
    """auto: this process for one worker, processes of this machine (or of --nnodes machines) for more, and Ray where
    this machine has too few accelerators and a cluster runs. Raises StartupError for what cannot be."""
    parallel = config.parallel
    size = parallel.world_size
    if parallel.backend == "local" and size > 1:
        raise StartupError(f"--distributed-executor-backend local runs one worker; {size} need multiprocess or ray")
    if parallel.backend == "ray" and parallel.nnodes > 1:
        raise StartupError("--nnodes is for running without Ray: a Ray cluster knows its machines")
    if parallel.backend != "auto":
        return parallel.backend
    if size == 1:
        return "local"
    devices = 0 if config.device.device == "cpu" else count_accelerators()
    if parallel.nnodes > 1 or not devices or size <= devices:
        return "multiprocess"
    if ray_runs():
        return "ray"
    raise StartupError(
        f"{size} workers need {size} accelerators, this machine has {devices}: start `inferd cluster` on several "
        f"machines, or serve with --nnodes"
    )


def count_accelerators() -> int:
    """NVIDIA devices of this machine that CUDA_VISIBLE_DEVICES leaves, without loading torch."""
    devices = len(glob.glob("/dev/nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return devices
    listed = [name.strip() for name in visible.split(",")]
    ends = [index for index, name in enumerate(listed) if name in ("", "-1")]  # CUDA reads no further
    return min(devices, min(ends, default=len(listed)))


def ray_runs() -> bool:
    """Whether Ray is installed and this machine is part of a cluster."""
    if importlib.util.find_spec("ray") is None:
        return False
    return "RAY_ADDRESS" in os.environ or RAY_CLUSTER_FILE.exists()
