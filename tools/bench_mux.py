"""CPU seconds that the gateway spends per streamed delta, with and without GenerateMux, before a daemon that computes
nothing: `python tools/bench_mux.py [--streams 32] [--tokens 256] [--step 0.01]`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import ROOT, free_port, is_healthy, wait_until

# The gateway as it is, told that no daemon has GenerateMux.
WITHOUT_MUX = """
import sys
from inferd_gateway import mux
from inferd_gateway.__main__ import main
mux.MuxPool.supported = property(lambda self: False)
sys.exit(main())
"""
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


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


def measure(address: str, mux: bool, options: argparse.Namespace) -> None:
    port = free_port()
    command = ["-m", "inferd_gateway"] if mux else ["-c", WITHOUT_MUX]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'gateway'}"}
    flags = [f"--backend={address}", f"--port={port}", "--no-access-log"]
    gateway = subprocess.Popen([sys.executable, *command, *flags], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: is_healthy(url))
        asyncio.run(load(url, 4, 16))
        before, started = cpu_seconds(gateway.pid), time.monotonic()
        events = asyncio.run(load(url, options.streams, options.tokens))
        spent, wall = cpu_seconds(gateway.pid) - before, time.monotonic() - started
    finally:
        gateway.terminate()
        gateway.wait()
    name = "GenerateMux" if mux else "Generate"
    print(f"{name:12} {events:7} events  {wall:6.2f} s  gateway {1e6 * spent / events:6.1f} us CPU per event")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--step", type=float, default=0.02)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    config = fake_config(scheduler={"max_num_seqs": 256, "max_num_batched_tokens": 4096})
    core = {"behaviour": {"step_s": options.step, "script": [65]}, "num_blocks": 8192}
    with DaemonProcess(config, core) as daemon:
        daemon.wait_ready()
        for _ in range(options.runs):
            for mux in (False, True):
                measure(daemon.address, mux, options)


if __name__ == "__main__":
    main()
