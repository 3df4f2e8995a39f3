"""ParallelContext: what a worker needs of its peers, handed to whoever computes. There is no global group.

Groups are built on a store directly, not with torch.distributed.init_process_group, so that a process may hold any
number of contexts and every socket is bound to the address that was chosen.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.distributed

from inferd.parallel.placement import Placement

MAX_PENDING_SENDS = 8
SIOCGIFADDR = 0x8915  # <linux/sockios.h>: the address of an interface
IPV6_ADDRESSES = Path("/proc/net/if_inet6")

c10d: Any = torch.distributed  # its stores and groups are not among torch's typed names
Store: TypeAlias = Any


class WaitClock:
    """Seconds that a worker has spent on peers. One writer: the worker's thread.

    On CUDA a collective is only launched here; its time is then the launch's.
    """

    def __init__(self) -> None:
        self.seconds = 0.0


@dataclass(frozen=True, slots=True)
class TensorGroup:
    """The ranks that share each layer of one stage. Collectives are asked to be synchronous, for which NCCL launches
    on the current stream: on a stream of its own, two events a call join it with ours (35 us of host time, on paper).
    """

    rank: int = 0
    size: int = 1
    group: Any = None  # a torch process group; None for a size of 1
    clock: WaitClock = field(default_factory=WaitClock)

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, in place; the same bits on every rank."""
        if self.size > 1:
            started = time.perf_counter()
            options = c10d.AllreduceOptions()
            options.asyncOp = False
            _finish(self.group.allreduce([values], options))
            self.clock.seconds += time.perf_counter() - started
        return values

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """[size, *values.shape]: what each rank has, by rank."""
        if self.size == 1:
            return values.unsqueeze(0)
        started = time.perf_counter()
        gathered = values.new_empty(self.size * values.numel())
        options = c10d.distributed_c10d.AllgatherOptions()
        options.asyncOp = False
        _finish(self.group._allgather_base(gathered, values.flatten(), options))
        self.clock.seconds += time.perf_counter() - started
        return gathered.view(self.size, *values.shape)


def _finish(work: Any) -> None:
    """A backend may answer a synchronous collective with nothing."""
    if work is not None:
        work.wait()


class StageLink:
    """The same tensor rank of the stages before and after. Sends return at once; tensors sent must not be changed."""

    def __init__(self, group: Any, stage: int, clock: WaitClock) -> None:
        self._group = group
        self._stage = stage
        self._clock = clock
        self._pending: deque[tuple[Any, torch.Tensor]] = deque()
        self._expected: deque[tuple[Any, torch.Tensor]] = deque()

    def send(self, stream: torch.Tensor) -> None:
        """To the next stage."""
        started = time.perf_counter()
        stream = stream.contiguous()
        self._pending.append((self._group.send([stream], self._stage + 1, 0), stream))
        while len(self._pending) > MAX_PENDING_SENDS:
            self._pending.popleft()[0].wait()
        self._clock.seconds += time.perf_counter() - started

    @property
    def expects(self) -> bool:
        """Whether a receive is posted that nobody has waited for."""
        return bool(self._expected)

    def expect(self, buffer: torch.Tensor) -> None:
        """Post the next receive from the stage before, in the order of its sends."""
        self._expected.append((self._group.recv([buffer], self._stage - 1, 0), buffer))

    def receive(self) -> torch.Tensor:
        """Wait for the oldest of what is expected."""
        started = time.perf_counter()
        work, buffer = self._expected.popleft()
        work.wait()
        self._clock.seconds += time.perf_counter() - started
        return buffer


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """placement, and the groups that go with it; link is None where there is one stage."""

    placement: Placement = field(default_factory=Placement)
    tensor: TensorGroup = field(default_factory=TensorGroup)
    link: StageLink | None = None

    @property
    def waited_s(self) -> float:
        return self.tensor.clock.seconds


@dataclass(frozen=True, slots=True)
class StoreServer:
    """The rendezvous of a group, listening on one address. It lives as long as this object."""

    store: Store
    port: int


def open_store(host: str, timeout_s: float) -> StoreServer:
    """Listen on a free port of the address `host`. The socket is ours: torch would bind every address there is."""
    listener = socket.create_server((host, 0), family=family(host))
    port = listener.getsockname()[1]
    store = c10d.TCPStore(
        host,
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listener.detach(),
    )
    return StoreServer(store, port)


def join_store(host: str, port: int, timeout_s: float) -> Store:
    return c10d.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout_s))


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connect(placement: Placement, store: Store, device: torch.device, host: str, timeout_s: float) -> ParallelContext:
    """Join the groups of this rank; every rank calls it. Raises RuntimeError when a peer does not come.

    host is the address of this machine that peers reach: gloo is bound to it, NCCL to its interface.
    """
    clock = WaitClock()
    tensor, link = TensorGroup(clock=clock), None
    if placement.tensor_size > 1:
        name = f"tensor/{placement.stage}"
        group = _group(store, name, placement.tensor_rank, placement.tensor_size, device, host, timeout_s)
        tensor = TensorGroup(placement.tensor_rank, placement.tensor_size, group, clock)
    if placement.num_stages > 1:
        name = f"stages/{placement.tensor_rank}"
        group = _group(store, name, placement.stage, placement.num_stages, device, host, timeout_s)
        link = StageLink(group, placement.stage, clock)
    return ParallelContext(placement, tensor, link)


def _group(store: Store, name: str, rank: int, size: int, device: torch.device, host: str, timeout_s: float) -> Any:
    """A gloo group for the CPU, an NCCL one for CUDA (not run here: no GPU was at hand)."""
    timeout = timedelta(seconds=timeout_s)
    prefixed = c10d.PrefixStore(name, store)
    if device.type == "cuda":
        if interface := interface_of(host):
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timeout
        group = c10d.ProcessGroupNCCL(prefixed, rank, size, options)
        # NCCL connects at the first collective, which comes after loading: the store would have given up waiting for
        # the rank whose file takes longest.
        group.eager_connect_single_device(device)
        return group
    options = c10d.ProcessGroupGloo._Options()
    options._devices = [c10d.ProcessGroupGloo.create_device(hostname=host)]
    options._threads = 1
    options._timeout = timeout
    return c10d.ProcessGroupGloo(prefixed, rank, size, options)


def interface_of(host: str) -> str | None:
    """The network interface that has the address `host`; None when none has."""
    if ":" in host:
        wanted = socket.inet_pton(socket.AF_INET6, host.partition("%")[0]).hex()
        rows = [line.split() for line in IPV6_ADDRESSES.read_text().splitlines()] if IPV6_ADDRESSES.exists() else []
        return next((row[-1] for row in rows if row[0] == wanted), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            request = struct.pack("16s240x", name.encode())
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(probe, SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == host:
                    return name
    return None
