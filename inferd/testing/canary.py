"""A well-behaved caller beside the hostile ones: what it gets must not change, and nothing may be left behind."""

from __future__ import annotations

import statistics
import threading
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.testing.processes import children_of, peak_memory
from inferd.testing.product import Product, wait_until
from inferd.v1 import inference_pb2, inference_pb2_grpc

PAUSE_S = 0.25
# A turn beside the hostile callers, compared with one alone. Generous: the machine may be shared, and each of them may
# send a megabyte. What it must not be is held up until they are done.
SLOWDOWN = 4
SLACK_S = 1.0  # of the median turn
WORST_S = 5.0  # of the slowest
GROWTH_BYTES = 96 * 2**20  # per process: caches that fill, and pages that the allocator keeps
SETTLE_S = 5.0  # after which what a large request took must have been given back
PROMPT = "the canary sings in the mine"
TOKENS = 64
SERVICE = "inferd.v1.InferenceService"


@dataclass
class Sighting:
    """What a product looks like from outside when nobody asks anything of it."""

    processes: list[int]
    series: set[str]
    restarts: float
    memory: dict[int, int]  # process id -> anonymous resident bytes


@dataclass
class Canary:
    """One greedy stream after the other over gRPC, a short completion over HTTP between, and a health watch. `with`
    runs it; `check` compares with what it saw when it was alone."""

    product: Product
    model: str
    alone: list[int] = field(default_factory=list)
    wrong: list[Any] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)  # seconds that each took
    alone_s: float = 0.0

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._sing), threading.Thread(target=self._watch)]
        self._channel = self.product.channel()
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._watching: Any = health_pb2_grpc.HealthStub(self._channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        self.alone, self._short_alone = self._stream(), self._short()
        self.alone_s = statistics.median(self._turn() for _ in range(3))
        assert not self.wrong, self.wrong
        self._before = look(self.product)

    def __enter__(self) -> Canary:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._watching.cancel()
        for thread in self._threads:
            thread.join(30)
        self._channel.close()

    def check(self) -> None:
        """After __exit__: the canary's answers never changed and came in time, nothing runs, every block is free,
        nothing restarted, no process has grown."""
        assert self.turns
        assert not self.wrong, self.wrong[:3]
        allowed = SLOWDOWN * self.alone_s
        assert statistics.median(self.turns) <= allowed + SLACK_S, (self.alone_s, self.turns)
        assert max(self.turns) <= allowed + WORST_S, (self.alone_s, self.turns)
        for name in ("requests_running", "requests_waiting", "kv_cache_usage_ratio"):
            wait_until(lambda name=name: self.product.metric(f"inferd_{name}") == 0, 10, f"{name} 0")  # type: ignore[misc]  # a bound default
        after = look(self.product)
        assert after.restarts == self._before.restarts
        assert after.processes == self._before.processes
        grown_by = f"memory within bounds, {self._growth()} bytes more,"
        wait_until(lambda: max(self._growth().values()) <= GROWTH_BYTES, SETTLE_S, grown_by)
        grown = {name for name in after.series - self._before.series if not labels_may_come(name)}
        assert not grown, grown

    def _growth(self) -> dict[int, int]:
        """process id -> bytes more than before."""
        return {pid: memory_of(pid) - size for pid, size in self._before.memory.items()}

    def _sing(self) -> None:
        while not self._stop.is_set():
            self.turns.append(self._turn())
            self._stop.wait(PAUSE_S)

    def _turn(self) -> float:
        """Both requests, their answers compared; the seconds they took."""
        started = time.monotonic()
        for work, expected in ((self._stream, self.alone), (self._short, self._short_alone)):
            try:
                got: Any = work()
            except (grpc.RpcError, httpx.HTTPError) as error:
                got = error
            if got != expected:
                self.wrong.append(got)
        return time.monotonic() - started

    def _watch(self) -> None:
        try:
            for answer in self._watching:
                if answer.status != health_pb2.HealthCheckResponse.SERVING:
                    self.wrong.append(answer)
        except grpc.RpcError as error:
            if not self._stop.is_set():
                self.wrong.append(error)

    def _stream(self) -> list[int]:
        request = inference_pb2.GenerateRequest(
            prompt={"text": PROMPT}, sampling={"temperature": 0}, stop={"max_tokens": TOKENS, "ignore_eos": True}
        )
        return [
            token
            for message in self._stub.Generate(request, timeout=30)
            for choice in message.choices
            for token in choice.token_ids
        ]

    def _short(self) -> str:
        body = {"model": self.model, "prompt": PROMPT, "max_tokens": 1, "temperature": 0}
        answer = httpx.post(f"{self.product.http}/v1/completions", json=body, timeout=30)
        return answer.text if answer.status_code != 200 else str(answer.json()["choices"][0]["text"])


def look(product: Product) -> Sighting:
    """Of the processes of the family that must live on, and of the series of daemon and gateway."""
    family = [product.pid]
    for pid in family:
        family += [child for child in children_of(pid) if not may_be_replaced(child)]
    series = series_of(product.metrics) | series_of(f"{product.http}/metrics")
    memory = {pid: memory_of(pid) for pid in family}
    return Sighting(family, series, product.metric("inferd_engine_restarts_total"), memory)


def memory_of(pid: int) -> int:
    return peak_memory(pid)["RssAnon"]


def may_be_replaced(pid: int) -> bool:
    """Compilers of constraints and renderers of templates are there to be killed."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return b"inferd.constraint_process" in command or b"inferd_gateway.templates" in command


def series_of(url: str) -> set[str]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {line.rsplit(" ", 1)[0] for line in lines if line and not line.startswith("#")}


def labels_may_come(series: str) -> bool:
    """The gateway's series per route and status appear with the first such answer: a closed set."""
    return series.startswith("inferd_gateway_")
