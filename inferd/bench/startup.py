"""How long a daemon takes from exec to SERVING, and where the time goes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time

import grpc
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.v1 import model_pb2, model_pb2_grpc

SERVICE = "inferd.v1.InferenceService"
POLL_S = 0.01


class Startup(msgspec.Struct, frozen=True):
    """Seconds from exec. phases are the daemon's own, in its order."""

    port_open_s: float
    serving_s: float
    phases: dict[str, float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def measure_startup(arguments: list[str], timeout_s: float = 120.0) -> Startup:
    """Start `inferd serve ARGUMENTS` on a free port, wait until it serves, stop it.

    Raises RuntimeError when it exits first, TimeoutError after timeout_s.
    """
    port = free_port()
    command = [sys.executable, "-P", "-m", "inferd", "serve", *arguments, "--port", str(port), "--metrics-port", "0"]
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(*command, env=os.environ)
    try:
        async with asyncio.timeout(timeout_s):
            port_open = await _until_open(process, port) - started
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await _until_serving(process, channel)
                serving = time.monotonic() - started
                info = await model_pb2_grpc.ModelServiceStub(channel).GetServerInfo(model_pb2.GetServerInfoRequest())
        phases = {phase.name: phase.elapsed_us / 1e6 for phase in info.startup_phases}
        return Startup(port_open, serving, phases)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()


async def _until_open(process: asyncio.subprocess.Process, port: int) -> float:
    while True:
        if process.returncode is not None:
            raise RuntimeError(f"the daemon exited with {process.returncode} before it listened")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(POLL_S)
            continue
        writer.close()
        return time.monotonic()


async def _until_serving(process: asyncio.subprocess.Process, channel: grpc.aio.Channel) -> None:
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
    try:
        async for status in watch:
            if status.status == health_pb2.HealthCheckResponse.SERVING:
                return
    finally:
        watch.cancel()
    raise RuntimeError(f"the daemon ended its health stream (exit status {process.returncode})")
