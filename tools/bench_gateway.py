"""What the gateway adds, before a daemon that computes nothing: milliseconds of a request over the same gRPC call, and
CPU microseconds of its process per server-sent event, with and without GenerateMux."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import grpc

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import ROOT, free_port, is_healthy, wait_until
from inferd.v1 import inference_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub

# The gateway as it is, told that no daemon has GenerateMux.
WITHOUT_MUX = """
import sys
from inferd_gateway import mux
from inferd_gateway.serve import main
mux.MuxPool.supported = property(lambda self: False)
sys.exit(main())
"""
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> tuple[float, float]:
    """In the program and in the kernel."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


async def stream(session: aiohttp.ClientSession, url: str, seed: int, tokens: int) -> int:
    """Number of events."""
    body = {"model": "fake", "prompt": "hello", "max_tokens": tokens, "seed": seed, "stream": True, "ignore_eos": True}
    async with session.post(f"{url}/v1/completions", data=json.dumps(body)) as response:
        assert response.status == 200, await response.text()
        return sum([line.startswith(b"data: {") async for line in response.content])


async def load(url: str, streams: int, tokens: int) -> int:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        return sum(await asyncio.gather(*(stream(session, url, seed, tokens) for seed in range(streams))))


@contextmanager
def gateway(address: str, mux: bool = True) -> Iterator[tuple[int, str]]:
    """Its pid and URL."""
    port = free_port()
    command = ["-m", "inferd_gateway"] if mux else ["-c", WITHOUT_MUX]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gateway'}"}
    flags = [f"--backend={address}", f"--port={port}", "--no-access-log", "--uvicorn-log-level=warning"]
    process = subprocess.Popen([sys.executable, "-P", *command, *flags], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_healthy(url))
        yield process.pid, url
    finally:
        process.terminate()
        process.wait()


def measure_events(address: str, mux: bool, options: argparse.Namespace) -> None:
    with gateway(address, mux) as (pid, url):
        asyncio.run(load(url, 4, 16))
        before, started = cpu_seconds(pid), time.monotonic()
        events = asyncio.run(load(url, options.streams, options.tokens))
        spent = [1e6 * (after - start) / events for after, start in zip(cpu_seconds(pid), before, strict=True)]
        wall = time.monotonic() - started
    name = "GenerateMux" if mux else "Generate"
    share = f"{sum(spent):6.1f} us CPU per event ({spent[1]:.1f} in the kernel)"
    print(f"{name:12} {events:7} events  {wall:6.2f} s  gateway {share}")


async def measure_requests(address: str, url: str, count: int) -> None:
    """Pairs of one token over gRPC and over HTTP, one after the other on connections that stay open."""
    generate = inference_pb2.GenerateRequest(
        prompt={"text": "hello"},
        sampling={"seed": 1},
        stop={"max_tokens": 1, "ignore_eos": True},
        stream={"mode": inference_pb2.STREAM_MODE_FINAL},
    )
    shared = {"model": "fake", "max_tokens": 1, "seed": 1, "ignore_eos": True}
    bodies = {
        "/v1/completions": shared | {"prompt": "hello"},
        "/v1/chat/completions": shared | {"messages": [{"role": "user", "content": "hello"}]},
    }
    headers = {"content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as session, grpc.aio.insecure_channel(address) as channel:
        stub = InferenceServiceStub(channel)
        times: dict[str, list[float]] = {name: [] for name in ("gRPC", *bodies)}
        for _ in range(count):
            started = time.perf_counter()
            async for _message in stub.Generate(generate):
                pass
            times["gRPC"].append(time.perf_counter() - started)
            for path, body in bodies.items():
                started = time.perf_counter()
                async with session.post(url + path, data=json.dumps(body)) as response:
                    assert response.status == 200, await response.text()
                    await response.read()
                times[path].append(time.perf_counter() - started)
    direct = times.pop("gRPC")
    print(f"{'gRPC':22} p50 {1e3 * statistics.median(direct):6.2f} ms")
    for path, taken in times.items():
        more = statistics.median(http - rpc for http, rpc in zip(taken, direct, strict=True))
        print(f"{path:22} p50 {1e3 * statistics.median(taken):6.2f} ms, {1e3 * more:5.2f} ms over gRPC")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--step", type=float, default=0.02)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    config = fake_config(scheduler={"max_num_seqs": 256, "max_num_batched_tokens": 4096})
    with DaemonProcess(config, {"num_blocks": 8192}) as daemon:
        daemon.wait_ready()
        with gateway(daemon.address) as (_, url):
            asyncio.run(measure_requests(daemon.address, url, options.requests))
    core = {"behaviour": {"step_s": options.step, "script": [65]}, "num_blocks": 8192}
    with DaemonProcess(config, core) as daemon:
        daemon.wait_ready()
        for _ in range(options.runs):
            for mux in (False, True):
                measure_events(daemon.address, mux, options)


if __name__ == "__main__":
    main()
