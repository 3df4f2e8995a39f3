"""How long a quiet key waits for its first token while another floods: `python tools/measure_fairness.py [MODEL]`.

Starts `inferd serve MODEL` with two keys. The quiet one asks one request at a time, first alone, then beside 200
requests of the other; then the same with the key of the flood, as if one queue served both. Run it on an otherwise idle
machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.testing.product import free_port
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc

IN_FLIGHT = 200
READY_TIMEOUT_S = 120.0
VOCABULARY = 30_000
QUIET, FLOOD = "quiet-key", "flood-key"


@contextlib.asynccontextmanager
async def serving(model: str) -> AsyncIterator[inference_pb2_grpc.InferenceServiceStub]:
    port = free_port()
    command = [sys.executable, "-m", "inferd", "serve", model, "--port", str(port), "--metrics-port", "off"]
    process = subprocess.Popen([*command, "--api-key", QUIET, FLOOD], stderr=subprocess.DEVNULL)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            health = health_pb2_grpc.HealthStub(channel)
            watch = health.Watch(
                health_pb2.HealthCheckRequest(service="inferd.v1.InferenceService"),
                timeout=READY_TIMEOUT_S,
                wait_for_ready=True,
            )
            async for reply in watch:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    break
            yield inference_pb2_grpc.InferenceServiceStub(channel)
    finally:
        process.terminate()
        process.wait()


class Callers:
    """Requests of random tokens, which no cached prefix helps."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceStub) -> None:
        self._stub = stub
        self._random = random.Random(1)
        self.flood_tokens = 0

    async def first_token_s(self, key: str, prompt: int, output: int) -> float:
        """Runs one request to its end; how long its first token took."""
        request = inference_pb2.GenerateRequest(
            prompt=common_pb2.Prompt(
                token_ids=common_pb2.TokenIds(ids=self._random.choices(range(100, VOCABULARY), k=prompt))
            ),
            stop=inference_pb2.StopConditions(max_tokens=output, ignore_eos=True),
        )
        began, first = time.monotonic(), 0.0
        async for message in self._stub.Generate(request, metadata=[("authorization", f"Bearer {key}")]):
            first = first or time.monotonic() - began
            if key == FLOOD:
                self.flood_tokens += sum(len(choice.token_ids) for choice in message.choices)
        return first

    async def flood(self) -> None:
        while True:
            await self.first_token_s(FLOOD, self._random.randint(50, 250), self._random.randint(20, 60))

    async def one_at_a_time(self, key: str, count: int, prompt: int) -> list[float]:
        times = []
        for _ in range(count):
            times.append(await self.first_token_s(key, prompt, 4))
            await asyncio.sleep(self._random.uniform(0.0, 0.5))  # so that it comes at any moment of a step
        return times


def line(name: str, times: list[float], idle: list[float]) -> str:
    p95 = statistics.quantiles(times, n=20)[-1]
    ratio = p95 / statistics.quantiles(idle, n=20)[-1]
    return f"{name:<34} p50 {statistics.median(times):8.3f} s   p95 {p95:8.3f} s   {ratio:7.2f} x idle\n"


async def measure(model: str, prompt: int, count: int, warm_s: float) -> None:
    async with serving(model) as stub:
        callers = Callers(stub)
        await callers.one_at_a_time(QUIET, 3, prompt)
        idle = await callers.one_at_a_time(QUIET, count, prompt)
        sys.stdout.write(f"prompts of {prompt} tokens, {count} of each\n" + line("idle", idle, idle))
        tasks = [asyncio.create_task(callers.flood()) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(warm_s)
        began, tokens = time.monotonic(), callers.flood_tokens
        beside = await callers.one_at_a_time(QUIET, count, prompt)
        rate = (callers.flood_tokens - tokens) / (time.monotonic() - began)
        sys.stdout.write(line(f"beside {IN_FLIGHT} of another key", beside, idle))
        sys.stdout.write(f"the flood meanwhile got {rate:.0f} tokens per second\n")
        same = await callers.one_at_a_time(FLOOD, max(count // 10, 2), prompt)
        sys.stdout.write(line(f"beside {IN_FLIGHT} of its own key", same, idle))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--warm", type=float, default=20.0, help="seconds of flood before the measurement")
    options = parser.parse_args()
    asyncio.run(measure(options.model, options.prompt, options.count, options.warm))


if __name__ == "__main__":
    main()
