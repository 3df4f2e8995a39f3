"""However a call ends early, its memory is free at once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.product import wait_until
from inferd.testing.wire import as_text, collect, expected_tokens, fails, make_generate
from inferd.v1.inference_pb2_grpc import InferenceServiceStub


@pytest.fixture(scope="module")
def slow() -> Iterator[DaemonProcess]:
    """Two sequences at a time, 20 ms a step, two may wait; readers must read within a second."""
    config = fake_config(scheduler={"max_num_seqs": 2, "max_waiting": 2}, server={"stall_timeout_s": 1.0})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.02}}) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def slow_stub(slow: DaemonProcess) -> Iterator[InferenceServiceStub]:
    with grpc.insecure_channel(slow.address) as channel:
        yield InferenceServiceStub(channel)


def assert_all_free(daemon: DaemonProcess) -> None:
    daemon.wait_metrics(requests_running=0, requests_waiting=0, kv_cache_usage_ratio=0)


def test_cancelling_frees(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    aborted = 'inferd_requests_finished_total{model_name="fake",reason="abort"}'
    before = slow.metrics()[aborted]
    call = slow_stub.Generate(make_generate(max_tokens=1000))
    next(call)
    assert slow.metrics()["inferd_requests_running"] == 1
    call.cancel()

    assert_all_free(slow)
    assert slow.metrics()[aborted] == before + 1


def test_a_dead_client_frees(slow: DaemonProcess) -> None:
    with grpc.insecure_channel(slow.address) as channel:
        next(InferenceServiceStub(channel).Generate(make_generate(max_tokens=1000)))

    assert_all_free(slow)


def test_cancelling_in_the_queue_frees(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    calls = [slow_stub.Generate(make_generate(max_tokens=1000)) for _ in range(4)]
    slow.wait_metrics(requests_running=2, requests_waiting=2)
    for call in calls:
        call.cancel()

    assert_all_free(slow)


def test_a_deadline_ends_the_call_and_frees(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    started = time.monotonic()
    failure = fails(slow_stub.Generate(make_generate(max_tokens=1000), timeout=0.3))

    assert failure.code == "DEADLINE_EXCEEDED"
    assert time.monotonic() - started < 1.5
    assert_all_free(slow)


def test_a_time_limit_is_graceful(slow_stub: InferenceServiceStub) -> None:
    choice = collect(slow_stub.Generate(make_generate(max_tokens=1000, stop={"time_limit": {"nanos": 200_000_000}})))[0]

    assert choice.reason.name == "TIME_LIMIT"
    assert choice.token_ids == expected_tokens(len(choice.token_ids))


def test_a_full_queue_says_when_to_come_back(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    calls = [slow_stub.Generate(make_generate(max_tokens=1000)) for _ in range(4)]
    slow.wait_metrics(requests_running=2, requests_waiting=2)
    first, second = (fails(slow_stub.Generate(make_generate())) for _ in range(2))

    assert (first.code, first.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert first.retry_s is not None
    assert first.pushback_ms == round(first.retry_s * 1000)
    assert second.retry_s is not None
    assert second.retry_s > first.retry_s  # those refused together do not come back together
    for call in calls:
        call.cancel()
    assert_all_free(slow)


def test_waiting_longer_than_the_queue_timeout_ends(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    calls = [slow_stub.Generate(make_generate(max_tokens=1000)) for _ in range(2)]
    slow.wait_metrics(requests_running=2)
    failure = fails(slow_stub.Generate(make_generate(queue_timeout={"nanos": 100_000_000})))
    for call in calls:
        call.cancel()

    assert (failure.code, failure.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_TIMEOUT")
    assert failure.retry_s is not None
    assert_all_free(slow)


def test_a_stop_string_frees_before_max_tokens(slow: DaemonProcess, slow_stub: InferenceServiceStub) -> None:
    text = as_text(expected_tokens(4))
    choice = collect(slow_stub.Generate(make_generate(max_tokens=1000, stop={"stop_strings": [text[-2:]]})))[0]

    assert choice.text == text[:-2]
    assert_all_free(slow)


def test_a_reader_that_stalls_is_cut_off(slow: DaemonProcess) -> None:
    options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 16384)]
    big = {"logprobs": {"top_n": 20, "token_ids": list(range(64)), "token_bytes": True}}
    with grpc.insecure_channel(slow.address, options=options) as channel:
        call = InferenceServiceStub(channel).Generate(
            make_generate("a" * 8, max_tokens=1500, num_choices=2, output=big)
        )
        next(call)
        errors = slow.wait_metrics(requests_running=0)  # nobody reads meanwhile
        assert errors['inferd_requests_finished_total{model_name="fake",reason="abort"}'] > 0
        failure = fails(call)

    assert (failure.code, failure.reason) == ("ABORTED", "SLOW_CONSUMER")


PREFILL = 1500  # tokens of a prompt that is read four a step
READER = """
import sys, grpc
from inferd.testing.wire import make_generate
from inferd.v1.inference_pb2_grpc import InferenceServiceStub
address, prompt = sys.argv[1:]
list(InferenceServiceStub(grpc.insecure_channel(address)).Generate(make_generate(prompt, max_tokens=500)))
"""


@pytest.fixture(scope="module")
def stepping() -> Iterator[DaemonProcess]:
    """One sequence at a time, four tokens a step, 150 ms each: steps can be counted from outside."""
    config = fake_config(scheduler={"max_num_seqs": 1, "max_num_batched_tokens": 4, "max_waiting": 2})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.15}, "num_blocks": 256}) as process:
        yield process.wait_ready()


def num_steps(metrics: dict[str, float]) -> float:
    return metrics["inferd_iteration_tokens_total_count"]


def has_reached(state: str, daemon: DaemonProcess, generated: float) -> bool:
    metrics = daemon.metrics()
    if state == "queued":
        return metrics["inferd_requests_waiting"] == 1
    started = metrics["inferd_requests_running"] == 1 and metrics["inferd_kv_cache_usage_ratio"] > 0
    return started and (state == "prefilling" or metrics["inferd_generation_tokens_total"] > generated)


@pytest.mark.parametrize("ending", ["cancelled", "deadline", "client killed"])
@pytest.mark.parametrize("state", ["running", "prefilling", "queued"])
def test_blocks_are_free_within_two_steps(stepping: DaemonProcess, state: str, ending: str) -> None:
    prompt = "p" * PREFILL if state == "prefilling" else "hello"
    with ExitStack() as stack, grpc.insecure_channel(stepping.address) as channel:
        stub = InferenceServiceStub(channel)
        assert_all_free(stepping)
        if state == "queued":
            occupant = stub.Generate(make_generate(max_tokens=1000))
            stack.callback(occupant.cancel)
            stepping.wait_metrics(requests_running=1)
        generated = stepping.metrics()["inferd_generation_tokens_total"]
        end: Callable[[], object]
        if ending == "client killed":
            reader = stack.enter_context(
                subprocess.Popen([sys.executable, "-c", READER, stepping.address, prompt], stderr=subprocess.DEVNULL)
            )
            stack.callback(reader.kill)
            end = reader.kill
        else:
            request = make_generate(prompt, max_tokens=500)
            call = stub.Generate(request, timeout=1.5 if ending == "deadline" else None)
            stack.callback(call.cancel)
            end = (lambda: fails(call)) if ending == "deadline" else call.cancel
        wait_until(lambda: has_reached(state, stepping, generated), what=state)
        end()

        ended_at = num_steps(stepping.metrics())
        if state == "queued":
            metrics = stepping.wait_metrics(requests_waiting=0)
        else:
            metrics = stepping.wait_metrics(requests_running=0, kv_cache_usage_ratio=0)
        assert num_steps(metrics) - ended_at <= 2
