"""However a call ends early, its memory is free at once."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
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
