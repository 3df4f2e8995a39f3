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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02


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


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def running_product(model: str, *flags: str) -> Iterator[Product]:
    http, rpc, metrics = free_port(), free_port(), free_port()
    command = [sys.executable, "-m", "inferd", "up", model, "--port", str(http), "--grpc-port", str(rpc)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "gateway"), str(ROOT / "kernels")])
    process = subprocess.Popen(
        [*command, "--metrics-port", str(metrics), *flags], env={**os.environ, "PYTHONPATH": path}, cwd=ROOT
    )
    product = Product(
        f"http://127.0.0.1:{http}", f"127.0.0.1:{rpc}", f"http://127.0.0.1:{metrics}/metrics", process.pid
    )
    try:
        wait_until(lambda: is_healthy(product.http) or process.poll() is not None, 60, "health 200")
        assert process.poll() is None, f"inferd up exited with {process.returncode}"
        yield product
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
