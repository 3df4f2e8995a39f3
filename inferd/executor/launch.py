"""Who starts the workers of each backend. Loads no torch, and Ray only where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence

from inferd.config import EngineConfig, ParallelConfig
from inferd.errors import StartupError
from inferd.executor.base import Progress
from inferd.executor.nodes import NodesLauncher
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.ray_launcher import RayLauncher
from inferd.executor.seats import Backend, Launcher, Seat
from inferd.executor.wire import Environment

LOOPBACK = "127.0.0.1"


def create_launcher(config: EngineConfig, backend: Backend, environment: Environment) -> Launcher:
    """Raises StartupError for a world that the machines cannot share evenly."""
    parallel = config.parallel
    if backend == "ray":
        return RayLauncher(config)
    if parallel.nnodes > 1:
        ranks_per_node(parallel)
        return NodesLauncher(parallel, environment)
    return LocalLauncher(parallel.world_size)


def ranks_per_node(parallel: ParallelConfig) -> int:
    size, nodes = parallel.world_size, parallel.nnodes
    if size % nodes:
        raise StartupError(
            f"{size} ranks (--tensor-parallel-size x --pipeline-parallel-size) cannot be shared by --nnodes {nodes}: "
            f"it must divide them"
        )
    return size // nodes


class LocalLauncher:
    """All ranks on this machine."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._processes = RankProcesses()

    def start(self, progress: Progress) -> Sequence[Seat]:
        size = self._world_size
        return [Seat(self._processes.start_local(rank), rank, size, LOOPBACK) for rank in range(size)]

    def endings(self) -> str:
        return self._processes.endings()

    def stop(self) -> None:
        self._processes.stop()

    def kill(self) -> None:
        self._processes.kill()
