"""Ray places one actor per rank on the machines of its cluster, and each actor starts one worker. Nothing else goes
through Ray: workers connect to the engine themselves, and tensors go through torch.distributed."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from inferd.address import join_address
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import Progress
from inferd.executor.rank_listener import RankListener
from inferd.executor.rank_processes import RankProcesses
from inferd.executor.seats import Seat
from inferd.executor.wire import JoinRank

logger = logging.getLogger(__name__)

ACCEPT_TIMEOUT_S = 0.2
PLACEMENT_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 120.0
KEY_BYTES = 32


class WorkerStarter:
    """The actor: its life is its worker's, which dies with it."""

    def __init__(self) -> None:
        self._processes = RankProcesses()

    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    def start(self, rank: int, address: str, key: str) -> None:
        self._processes.start_remote(rank, address, key)

    def endings(self) -> str:
        return self._processes.endings()


class RayLauncher:
    """Implements seats.Launcher. The engine must run on a machine of the cluster."""

    def __init__(self, config: EngineConfig) -> None:
        self._parallel = config.parallel
        self._device = config.device.device
        self._actors: list[Any] = []
        self._group: Any = None

    def start(self, progress: Progress) -> Sequence[Seat]:
        """Raises StartupError when Ray is missing, no cluster runs, or it has too few machines or accelerators."""
        ray = _connect_to_cluster()
        size = self._parallel.world_size
        uses_cuda = self._device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
        self._place(ray, {"GPU": 1.0} if uses_cuda else {"CPU": 1.0})
        # Ranks that share every layer talk most: neighbours by rank sit on one machine where they can.
        nodes = ray.get([actor.node.remote() for actor in self._actors])
        order = sorted(range(size), key=lambda index: (nodes[index] != nodes[0], nodes[index]))
        actors, nodes = [self._actors[index] for index in order], [nodes[index] for index in order]
        host = str(ray.util.get_node_ip_address())
        # What opens this start's door, and is worth nothing afterwards. The cluster's own key stays out of Ray, which
        # would store it with the actors and show it to whoever may look at them.
        key = secrets.token_hex(KEY_BYTES)
        listener = RankListener(host, 0, ACCEPT_TIMEOUT_S, key)
        address = join_address(host, listener.port)
        try:
            ray.get([actor.start.remote(rank, address, key) for rank, actor in enumerate(actors)])
            guests = self._await_ranks(listener, progress)
        finally:
            listener.close()
        local, counts = Counter[str](), Counter(nodes)
        seats = []
        for rank, node in enumerate(nodes):
            # Ray shows each actor its own accelerator alone, as number 0.
            index = 0 if uses_cuda else local[node]
            seats.append(Seat(guests[rank].sock, index, counts[node], guests[rank].host))
            local[node] += 1
        return seats

    def endings(self) -> str:
        import ray

        try:
            found = ray.get([actor.endings.remote() for actor in self._actors], timeout=2.0)
        except ray.exceptions.RayError as error:
            return f"Ray: {str(error).splitlines()[0]}"
        return "; ".join(each for each in found if each)

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
            self._group = None
        ray.shutdown()

    def _place(self, ray: Any, resources: dict[str, float]) -> None:
        """One actor per rank, packed onto as few machines as hold them."""
        size = self._parallel.world_size
        self._group = ray.util.placement_group([resources] * size, strategy="PACK")
        if not self._group.wait(PLACEMENT_TIMEOUT_S):
            have = {name: ray.cluster_resources().get(name, 0) for name in resources}
            raise StartupError(f"the Ray cluster cannot place {size} workers of {resources} each; it has {have}")
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        names = ("PYTHONPATH", "INFERD_LOG_LEVEL")
        variables = {name: os.environ[name] for name in names if name in os.environ}
        starter = ray.remote(
            num_cpus=resources.get("CPU", 0),
            num_gpus=resources.get("GPU", 0),
            runtime_env={"env_vars": variables},
        )(WorkerStarter)
        for index in range(size):
            where = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=index)
            self._actors.append(starter.options(scheduling_strategy=where).remote())

    def _await_ranks(self, listener: RankListener, progress: Progress) -> dict[int, Any]:
        size, guests = self._parallel.world_size, dict[int, Any]()
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while len(guests) < size:
            if time.monotonic() > deadline:
                missing = sorted(set(range(size)) - set(guests))
                raise StartupError(f"ranks {missing} did not connect in {JOIN_TIMEOUT_S:.0f} s: {self.endings()}")
            guest = listener.accept()
            if guest is not None and isinstance(guest.message, JoinRank) and 0 <= guest.message.rank < size:
                guests[guest.message.rank] = guest
                progress("workers", len(guests) / (size + 1))
        return guests


def _connect_to_cluster() -> Any:
    """The ray module, connected. Raises StartupError."""
    try:
        import ray
    except ImportError:
        raise StartupError("--distributed-executor-backend ray needs the package ray (extra: ray)") from None
    try:
        # Ray puts the directory that a driver starts in first on the import path of every actor.
        with contextlib.chdir("/"):
            ray.init(
                address=os.environ.get("RAY_ADDRESS", "auto"),
                configure_logging=False,
                log_to_driver=False,
                namespace="inferd",
            )
    except ConnectionError as error:
        reason = str(error).splitlines()[0]
        raise StartupError(f"no Ray cluster here (start one with `inferd cluster start --head`): {reason}") from None
    return ray
