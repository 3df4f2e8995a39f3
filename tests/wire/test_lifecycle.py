"""Start, death and end of the daemon and its core, as clients see them."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import Choice, as_text, collect, expected_tokens, fails, make_generate
from inferd.v1 import inference_pb2, model_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub
from inferd.v1.model_pb2_grpc import ModelServiceStub

READINESS = "inferd.v1.InferenceService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
STEP = {"behaviour": {"step_s": 0.01}}


def free_port() -> int:
    with closing(socket.socket()) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running(core: dict[str, Any] | None = None, **server: Any) -> Iterator[tuple[DaemonProcess, grpc.Channel]]:
    """A serving daemon and a channel to it."""
    with DaemonProcess(fake_config(server=server), core or STEP) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            yield daemon, channel


class Background:
    """A stream that is read on a thread; `started` once it has given something."""

    def __init__(self, channel: grpc.Channel, request: inference_pb2.GenerateRequest) -> None:
        self.started = threading.Event()
        self.choices: dict[int, Choice] = {}
        self.failure: Any = None
        self._call = InferenceServiceStub(channel).Generate(request)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        def note() -> Iterator[inference_pb2.GenerateResponse]:
            for message in self._call:
                self.started.set()
                yield message

        try:
            self.choices = collect(note())
        except grpc.RpcError:
            self.failure = fails(self._call)

    def join(self) -> Background:
        self._thread.join(timeout=30)
        assert not self._thread.is_alive()
        return self


def watch(channel: grpc.Channel, service: str = READINESS) -> Iterator[int]:
    """Statuses of a health Watch."""
    for response in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=service)):
        yield response.status


def kill_core(daemon: DaemonProcess, number: signal.Signals = signal.SIGKILL) -> int:
    (pid,) = daemon.core_pids()
    os.kill(pid, number)
    return pid


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, f"process {pid} is still there"


def test_the_start_is_visible_from_the_first_moment() -> None:
    port = free_port()
    with DaemonProcess(fake_config(server={"port": port}), {"load_s": 2.0}) as daemon:
        with grpc.insecure_channel(daemon.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
            statuses = watch(channel)
            assert next(statuses) == NOT_SERVING
            failure = fails(InferenceServiceStub(channel).Generate(make_generate()))
            assert (failure.code, failure.reason) == ("UNAVAILABLE", "NOT_READY")
            assert failure.pushback_ms
            assert "the model is loading: " in failure.message  # and the phase: spawn, then weights
            assert ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest()).models[0].name == "fake"
            assert next(statuses) == SERVING
            assert collect(InferenceServiceStub(channel).Generate(make_generate()))
        daemon.wait_ready()


def test_a_core_that_cannot_start_ends_the_daemon_with_one_line() -> None:
    with DaemonProcess(fake_config(), {"startup_error": "tensor x is missing"}) as daemon:
        assert daemon.wait() == 1
    assert daemon.lines[-1] == "inferd: tensor x is missing"
    assert not any("Traceback" in line for line in daemon.lines)


@pytest.mark.parametrize("which", ["port", "metrics_port"])
def test_a_port_in_use_is_one_line(which: str) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with DaemonProcess(fake_config(server={which: port})) as daemon:
            assert daemon.wait() == 1
    assert f"port {port} on 127.0.0.1 is in use" in daemon.lines[-1]
    assert not any("Traceback" in line for line in daemon.lines)


def test_streams_survive_the_death_of_the_core() -> None:
    with running() as (daemon, channel):
        statuses = watch(channel)
        assert next(statuses) == SERVING
        one = Background(channel, make_generate(max_tokens=150))
        many = Background(channel, make_generate(max_tokens=150, num_choices=3))
        text = as_text(expected_tokens(140))
        stop = text[-3:]
        assert text.index(stop) == len(text) - 3
        stopped = Background(channel, make_generate(max_tokens=1000, stop={"stop_strings": [stop]}))
        for stream in (one, many, stopped):
            assert stream.started.wait(10)
        kill_core(daemon)

        assert next(statuses) == NOT_SERVING
        assert next(statuses) == SERVING
        assert one.join().choices[0].token_ids == expected_tokens(150)
        assert {c: choice.token_ids for c, choice in many.join().choices.items()} == {
            c: expected_tokens(150, choice=c) for c in range(3)
        }
        assert stopped.join().choices[0].text == text[:-3]
        metrics = daemon.wait_metrics(requests_running=0, kv_cache_usage_ratio=0)
        assert metrics["inferd_engine_restarts_total"] == 1
        assert metrics["inferd_requests_resumed_total"] == 3


def test_calls_while_the_core_restarts_are_told_to_come_back() -> None:
    with running({"behaviour": {"step_s": 0.01}, "load_s": 1.0}) as (daemon, channel):
        statuses = watch(channel)
        next(statuses)
        kill_core(daemon)
        assert next(statuses) == NOT_SERVING
        failure = fails(InferenceServiceStub(channel).Generate(make_generate()))

        assert (failure.code, failure.reason) == ("UNAVAILABLE", "NOT_READY")
        assert failure.retry_s == 1.0


def test_a_request_under_which_the_core_keeps_dying_fails() -> None:
    with running({"behaviour": {"step_s": 0.01, "die_at_step": 20}}) as (daemon, channel):
        failure = fails(InferenceServiceStub(channel).Generate(make_generate(max_tokens=1000)))

        assert (failure.code, failure.reason) == ("UNAVAILABLE", "ENGINE_DEAD")
        assert "3 times" in failure.message
        assert daemon.process.poll() is None


def test_a_core_that_dies_again_and_again_ends_the_daemon() -> None:
    with running() as (daemon, channel):
        statuses = watch(channel)
        assert next(statuses) == SERVING
        for _ in range(4):
            kill_core(daemon)
            assert next(statuses) == NOT_SERVING
            assert next(statuses) == SERVING
        kill_core(daemon)
        assert daemon.wait() == 1
    assert "5 times" in daemon.lines[-1]


def test_a_hung_core_is_replaced_under_the_stream() -> None:
    config = fake_config(parallel={"step_timeout_s": 1.0})
    with DaemonProcess(config, STEP) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            stream = Background(channel, make_generate(max_tokens=150))
            assert stream.started.wait(10)
            kill_core(daemon, signal.SIGSTOP)

            assert stream.join().choices[0].token_ids == expected_tokens(150)
    assert any("no progress" in line for line in daemon.lines)


def test_sigterm_finishes_what_runs_and_refuses_the_rest() -> None:
    with running(drain_settle_s=0.3) as (daemon, channel):
        core = daemon.core_pids()[0]
        statuses, process = watch(channel), watch(channel, "")
        assert (next(statuses), next(process)) == (SERVING, SERVING)
        stream = Background(channel, make_generate(max_tokens=150))
        assert stream.started.wait(10)
        daemon.signal(signal.SIGTERM)

        assert (next(statuses), next(process)) == (NOT_SERVING, NOT_SERVING)
        stub = InferenceServiceStub(channel)
        assert collect(stub.Generate(make_generate()))  # balancers have not heard yet
        while not (failure := try_once(stub)):
            continue
        assert (failure.code, failure.reason) == ("UNAVAILABLE", "DRAINING")
        assert failure.pushback_ms
        assert stream.join().choices[0].token_ids == expected_tokens(150)
        assert list(statuses) == []  # the watch ends, and well
        assert daemon.wait() == 0
    assert_gone(core)


def try_once(stub: InferenceServiceStub) -> Any:
    try:
        return collect(stub.Generate(make_generate(max_tokens=1))) and None
    except grpc.RpcError:
        return fails(stub.Generate(make_generate()))


def test_what_does_not_finish_in_time_is_told_so() -> None:
    with running(drain_timeout_s=0.2) as (daemon, channel):
        stream = Background(channel, make_generate(max_tokens=2000))
        assert stream.started.wait(10)
        started = time.monotonic()
        daemon.signal(signal.SIGTERM)

        assert stream.join().failure.reason == "DRAINING"
        assert daemon.wait() == 0
        assert time.monotonic() - started < 4


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_means_now(numbers: tuple[signal.Signals, ...]) -> None:
    with running(drain_settle_s=20.0) as (daemon, channel):
        stream = Background(channel, make_generate(max_tokens=2000))
        assert stream.started.wait(10)
        started = time.monotonic()
        statuses = watch(channel)
        assert next(statuses) == SERVING
        daemon.signal(numbers[0])
        assert next(statuses) == NOT_SERVING
        daemon.signal(numbers[1])

        assert stream.join().failure.reason == "DRAINING"
        assert daemon.wait() == 0
        assert time.monotonic() - started < 4


def test_a_signal_during_the_start_ends_it() -> None:
    port = free_port()
    with DaemonProcess(fake_config(server={"port": port}), {"load_s": 15.0}) as daemon:
        with grpc.insecure_channel(daemon.address) as channel:
            grpc.channel_ready_future(channel).result(timeout=10)
        daemon.signal(signal.SIGTERM)
        assert daemon.wait() == 0


def test_the_core_dies_with_the_daemon() -> None:
    with running() as (daemon, _):
        core = daemon.core_pids()[0]
        daemon.signal(signal.SIGKILL)
        daemon.wait()
    assert_gone(core)
