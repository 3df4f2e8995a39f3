"""The product as users start it: `inferd up`, both processes, real sockets. For tests and tools."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02
READINESS = "inferd.v1.InferenceService"


@dataclass(frozen=True)
class Product:
    """A running pair of processes."""

    http: str
    address: str
    metrics: str
    pid: int

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def metric(self, name: str) -> float:
        """Sum over the label sets of one of the daemon's series."""
        with urllib.request.urlopen(self.metrics, timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, f"no series {name}"
        return sum(values)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0, what: str = "condition") -> None:
    """Poll an observable condition; fails naming it."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} not reached in {timeout_s} s"
        time.sleep(POLL_S)


def grpc_serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=READINESS))
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def running_product(model: str, *flags: str) -> Iterator[Product]:
    """`inferd up`."""
    http, rpc, metrics = free_port(), free_port(), free_port()
    ports = ("--port", str(http), "--grpc-port", str(rpc), "--metrics-port", str(metrics))
    url = f"http://127.0.0.1:{http}"
    with running(("inferd", "up", model, *ports, *flags), lambda: is_healthy(url)) as pid:
        yield Product(url, f"127.0.0.1:{rpc}", f"http://127.0.0.1:{metrics}/metrics", pid)


@contextlib.contextmanager
def running_daemon(model: str, *flags: str) -> Iterator[str]:
    """`inferd serve`; its address."""
    address = f"127.0.0.1:{free_port()}"
    ports = ("--port", address.rpartition(":")[2], "--metrics-port", str(free_port()))
    with running(("inferd", "serve", model, *ports, *flags), lambda: grpc_serves(address)):
        yield address


@contextlib.contextmanager
def running_gateway(backends: Sequence[str], *flags: str) -> Iterator[str]:
    """`inferd-gateway` in front of daemons that serve; its URL."""
    url = f"http://127.0.0.1:{free_port()}"
    options = [option for backend in backends for option in ("--backend", backend)]
    command = ("inferd_gateway", "--port", url.rpartition(":")[2], *options, *flags)
    with running(command, lambda: is_healthy(url)):
        yield url


@contextlib.contextmanager
def running(arguments: Sequence[str], is_ready: Callable[[], bool]) -> Iterator[int]:
    """A command of this repository once it is ready; its process id. It must end well. It is asked to as by a
    keyboard: after SIGTERM a daemon waits for balancers to take note."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "gateway"), str(ROOT / "kernels")])
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *arguments], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
    )
    try:
        wait_until(lambda: is_ready() or process.poll() is not None, 120, f"{arguments[0]} ready")
        assert process.poll() is None, f"{' '.join(arguments[:2])} exited with {process.returncode}"
        yield process.pid
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0
