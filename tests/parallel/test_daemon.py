"""A daemon over many workers, by gRPC: a worker that dies costs the streams of the moment, soon, and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.server.health import READINESS
from inferd.testing.byte_tokenizer import BOS, EOS, SPECIALS, byte_tokenizer
from inferd.testing.processes import children_of, shared_memory
from inferd.testing.product import free_port, wait_until
from inferd.testing.tiny_models import write_tiny_model
from inferd.testing.wire import Failure, decode_failure
from inferd.v1 import inference_pb2, inference_pb2_grpc

LIMIT_S = 2.0  # from a worker's death to the end of every stream
START_S = 240.0  # sixteen workers on two cores that do other things too

pytestmark = pytest.mark.usefixtures("rank_environment")


@dataclass
class Daemon:
    """`inferd serve` in a process of its own."""

    address: str
    process: subprocess.Popen[str]
    metrics_port: int
    log: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> list[int]:
        """Process ids of the workers, by rank: they are started in that order."""
        return [rank for core in children_of(self.process.pid) for rank in children_of(core)]

    def processes(self) -> list[int]:
        return [self.process.pid, *children_of(self.process.pid), *self.ranks]

    def serves(self) -> bool:
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(
                    health_pb2.HealthCheckRequest(service=READINESS), timeout=5
                )
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def rank_seconds(self) -> set[tuple[str, str]]:
        """(rank, stage) of the workers whose computing time is exported."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            text: str = answer.read().decode()
        return set(re.findall(r'inferd_rank_compute_seconds_total\{.*rank="(\d+)",stage="(\d+)"\}', text))

    def answer(self, prompt: str) -> list[int]:
        """16 greedy tokens."""
        with grpc.insecure_channel(self.address) as channel:
            parts = generate(channel, prompt, 16, timeout_s=30.0)
            return [token for part in parts for choice in part.choices for token in choice.token_ids]


@contextmanager
def serving(model: Path, *flags: str) -> Iterator[Daemon]:
    port = free_port()
    metrics = free_port()
    command = [sys.executable, "-m", "inferd", "serve", str(model), *flags, "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--metrics-port", str(metrics)], stderr=subprocess.PIPE, text=True
    )
    daemon = Daemon(f"127.0.0.1:{port}", process, metrics)
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: daemon.log.extend(process.stderr or ()))
    reader.start()
    try:
        wait_until(lambda: process.poll() is not None or daemon.serves(), START_S, "health SERVING")
        assert process.poll() is None, "".join(daemon.log)
        yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(20)
        reader.join()
        process.stderr.close()
    assert status == 0, "".join(daemon.log)


def write_served_model(name: str, folder: Path, **changes: object) -> Path:
    """A tiny model that speaks bytes, with a context that takes seconds to fill."""
    size = {"vocab_size": 256 + len(SPECIALS), "bos_token_id": BOS, "eos_token_id": EOS}
    write_tiny_model(name, folder, max_position_embeddings=4096, **size, **changes)
    byte_tokenizer().parts.backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_served_model("llama", tmp_path_factory.mktemp("served"))


def generate(
    channel: grpc.Channel, prompt: str, max_tokens: int, timeout_s: float
) -> Iterator[inference_pb2.GenerateResponse]:
    request = inference_pb2.GenerateRequest(
        prompt={"text": prompt}, sampling={"temperature": 0.0}, stop={"max_tokens": max_tokens, "ignore_eos": True}
    )
    stream: Iterator[inference_pb2.GenerateResponse] = inference_pb2_grpc.InferenceServiceStub(channel).Generate(
        request, timeout=timeout_s
    )
    return stream


class OpenStream(threading.Thread):
    """A stream that does not end by itself."""

    def __init__(self, address: str, prompt: str) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.failure: Failure | None = None
        self.ended = 0.0
        self._address = address
        self._prompt = prompt
        self.start()

    def run(self) -> None:
        with grpc.insecure_channel(self._address) as channel:
            try:
                for part in generate(channel, self._prompt, 4000, timeout_s=100.0):
                    if part.choices:
                        self.begun.set()
            except grpc.RpcError as error:
                self.failure = decode_failure(error)
            self.ended = time.monotonic()


def ends_of(daemon: Daemon, count: int, act: Callable[[], None]) -> list[tuple[float, Failure]]:
    """How `count` streams ended that were under way when `act` was called, and how long after."""
    streams = [OpenStream(daemon.address, f"stream {index}") for index in range(count)]
    for stream in streams:
        assert stream.begun.wait(60.0)
    began = time.monotonic()
    act()
    for stream in streams:
        stream.join(60.0)
        assert stream.failure is not None, "a stream ended well, or never"
    return [(stream.ended - began, stream.failure) for stream in streams if stream.failure is not None]


def check_retryable(failure: Failure) -> None:
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "ENGINE_DEAD"), failure
    assert failure.retry_s is not None


@pytest.mark.parametrize(
    ("tensor", "stages", "num_streams"),
    [(2, 1, 3), pytest.param(2, 2, 8, marks=[pytest.mark.slow, pytest.mark.timeout(600)])],
)
def test_a_killed_rank_ends_every_stream_and_the_group_comes_back(
    tensor: int, stages: int, num_streams: int, model: Path
) -> None:
    with serving(model, "-tp", str(tensor), "-pp", str(stages)) as daemon:
        expected = daemon.answer("hello")
        # The quick form kills one rank, the last; the other each in turn.
        for victim in range(tensor * stages) if stages > 1 else [tensor - 1]:
            before = daemon.ranks
            assert len(before) == tensor * stages
            for after, failure in ends_of(daemon, num_streams, partial(os.kill, before[victim], signal.SIGKILL)):
                check_retryable(failure)
                assert after < LIMIT_S
            wait_until(daemon.serves, START_S, "health SERVING again")
            assert not set(before) & set(daemon.ranks)
            assert daemon.answer("hello") == expected


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", [0, 3])
def test_a_rank_that_hangs_is_found_and_the_group_comes_back(victim: int, model: Path) -> None:
    with serving(model, "-tp", "2", "-pp", "2", "--step-timeout", "2") as daemon:
        expected = daemon.answer("hello")
        before = daemon.ranks
        for after, failure in ends_of(daemon, 4, partial(os.kill, before[victim], signal.SIGSTOP)):
            check_retryable(failure)
            assert 1.0 < after < 2.0 + 2.0 + LIMIT_S, "step timeout, patience with the stacks, end"
        wait_until(daemon.serves, START_S, "health SERVING again")
        assert daemon.answer("hello") == expected
        assert not set(before) & set(daemon.ranks)
        log = "".join(daemon.log)
        for rank in set(range(4)) - {victim}:
            assert f"rank {rank} is here" in log
        assert f"ranks that do not answer: {victim}" in log


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_starts_and_stops_of_a_daemon_leave_nothing(model: Path) -> None:
    before, children = shared_memory(), children_of(os.getpid())  # of other tests' fixtures
    for _ in range(20):
        with serving(model, "-tp", "2", "-pp", "2") as daemon:
            daemon.answer("hello")
            processes = daemon.processes()
            assert len(processes) == 6
        assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
        assert shared_memory() == before
    assert set(children_of(os.getpid())) <= set(children)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("name", "tensor", "stages", "changes"),
    [("opt", 4, 1, {}), ("gpt2", 4, 2, {}), ("llama", 8, 2, {"num_attention_heads": 8, "hidden_size": 64})],
)
def test_the_commands_that_people_know(
    name: str, tensor: int, stages: int, changes: dict[str, int], tmp_path: Path
) -> None:
    """serve MODEL --tensor-parallel-size T --pipeline-parallel-size P, nothing else said."""
    model = write_served_model(name, tmp_path, **changes)
    with serving(model) as daemon:
        expected = daemon.answer("The capital of France is")
    flags = ["--tensor-parallel-size", str(tensor)]
    flags += ["--pipeline-parallel-size", str(stages)] if stages > 1 else []
    with serving(model, *flags) as daemon:
        assert daemon.answer("The capital of France is") == expected
        ranks = {(str(rank), str(rank // tensor)) for rank in range(tensor * stages)}
        assert len(daemon.ranks) == len(ranks)
        # Once a second, with a step.
        wait_until(
            lambda: daemon.answer("again") != [] and daemon.rank_seconds() == ranks, 30.0, "metrics of all ranks"
        )
