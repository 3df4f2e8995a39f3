"""GenerateMux: the same generations as Generate, many on one stream, and no failure reaches another."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import collect, decode_failure, expected_tokens, fails, make_generate
from inferd.v1 import inference_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub


class MuxClient:
    """One open stream: start() and cancel() write, read() takes the next message."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._outgoing: queue.Queue[inference_pb2.GenerateMuxRequest | None] = queue.Queue()
        self.call = InferenceServiceStub(channel).GenerateMux(iter(self._outgoing.get, None))
        self.messages: list[inference_pb2.GenerateMuxResponse] = []

    def start(self, stream_id: int, request: inference_pb2.GenerateRequest, **fields: Any) -> None:
        self.send(stream_id=stream_id, start=inference_pb2.MuxStart(request=request, **fields))

    def send(self, **fields: Any) -> None:
        self._outgoing.put(inference_pb2.GenerateMuxRequest(**fields))

    def close(self) -> None:
        self._outgoing.put(None)

    def read(self) -> inference_pb2.GenerateMuxResponse:
        self.messages.append(next(self.call))
        return self.messages[-1]

    def until_end(self, *stream_ids: int) -> dict[int, list[inference_pb2.MuxItem]]:
        """The items read so far of these streams, once all of them have ended."""
        while not all(any(item.end for item in self.items(stream_id)) for stream_id in stream_ids):
            self.read()
        return {stream_id: self.items(stream_id) for stream_id in stream_ids}

    def items(self, stream_id: int) -> list[inference_pb2.MuxItem]:
        return [item for message in self.messages for item in message.items if item.stream_id == stream_id]


@pytest.fixture
def mux(channel: grpc.Channel) -> Iterator[MuxClient]:
    client = MuxClient(channel)
    yield client
    client.close()
    client.call.cancel()


def responses(items: list[inference_pb2.MuxItem]) -> list[inference_pb2.GenerateResponse]:
    assert [item.end for item in items] == [False] * (len(items) - 1) + [True]
    return [item.response for item in items if item.HasField("response")]


def test_many_generations_equal_single_ones(mux: MuxClient) -> None:
    for stream_id in range(40):
        mux.start(stream_id, make_generate(seed=stream_id, max_tokens=20))
    ended = mux.until_end(*range(40))
    for stream_id, items in ended.items():
        assert collect(responses(items))[0].token_ids == expected_tokens(20, seed=stream_id)


def test_a_step_is_one_message(channel: grpc.Channel) -> None:
    with DaemonProcess(fake_config(), {"behaviour": {"step_s": 0.02}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as own:
            client = MuxClient(own)
            for stream_id in range(30):
                client.start(stream_id, make_generate(seed=stream_id, max_tokens=40))
            client.until_end(*range(30))
            client.close()
            assert list(client.call) == []
    # 1,200 deltas in 40 steps and a few more; the starts and the ends may share none.
    assert len(client.messages) < 90


def test_an_error_is_of_its_item_alone(mux: MuxClient) -> None:
    mux.start(1, make_generate(max_tokens=30))
    mux.start(2, make_generate(sampling={"temperature": 9.0}))
    mux.start(3, make_generate(model="nobody"))
    mux.start(4, make_generate(), timeout={"seconds": -1})
    ended = mux.until_end(1, 2, 3, 4)

    assert collect(responses(ended[1]))[0].token_ids == expected_tokens(30)
    errors = {stream_id: items[-1].error for stream_id, items in ended.items() if stream_id > 1}
    assert [(error.code, error.reason, error.field) for error in errors.values()] == [
        (3, "INVALID_PARAMETER", "sampling.temperature"),
        (5, "MODEL_NOT_FOUND", "model"),
        (3, "INVALID_PARAMETER", "timeout"),
    ]
    assert errors[3].metadata == {"model": "nobody"}


def test_a_field_of_a_newer_contract_is_refused(mux: MuxClient) -> None:
    request = inference_pb2.GenerateRequest.FromString(make_generate().SerializeToString() + b"\xf8\x3f\x01")
    mux.start(1, request)
    assert mux.until_end(1)[1][-1].error.reason == "INVALID_PARAMETER"


def test_cancel_ends_one_and_frees_its_id(daemon: DaemonProcess, mux: MuxClient) -> None:
    mux.start(1, make_generate(max_tokens=2000))
    mux.start(2, make_generate(max_tokens=50))
    mux.read()
    mux.send(stream_id=1, cancel={})
    mux.send(stream_id=77, cancel={})
    ended = mux.until_end(1, 2)
    assert not ended[1][-1].HasField("error")
    assert collect(responses(ended[2]))[0].token_ids == expected_tokens(50)
    mux.messages.clear()
    mux.start(1, make_generate(max_tokens=3))
    assert collect(responses(mux.until_end(1)[1]))[0].token_ids == expected_tokens(3)
    daemon.wait_metrics(requests_running=0, requests_waiting=0)


def test_a_deadline_is_of_its_item(mux: MuxClient) -> None:
    mux.start(1, make_generate(max_tokens=2000), timeout={"nanos": 50_000_000})
    mux.start(2, make_generate(max_tokens=100))
    ended = mux.until_end(1, 2)
    assert ended[1][-1].error.reason == "DEADLINE_EXCEEDED"
    assert responses(ended[2])


def test_metadata_is_the_items_own(daemon: DaemonProcess, mux: MuxClient) -> None:
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    metadata = {"x-request-id": "from-metadata", "traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
    mux.start(1, make_generate(max_tokens=2), metadata=metadata)
    first = responses(mux.until_end(1)[1])[0]
    assert first.request_id == "from-metadata"
    lines = [line for line in daemon.lines if "request_id=from-metadata" in line]
    assert any(f"trace_id={trace}" in line and "code=OK" in line for line in lines)


def test_256_generations_and_no_more(channel: grpc.Channel) -> None:
    config = fake_config(scheduler={"max_num_seqs": 64, "max_waiting": 256})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.02}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as own:
            client = MuxClient(own)
            for stream_id in range(257):
                client.start(stream_id, make_generate(seed=stream_id, max_tokens=500))
            error = client.until_end(256)[256][-1].error
            assert (error.code, error.reason) == (8, "QUEUE_FULL")
            assert error.retry_after_ms > 0
            client.call.cancel()
            daemon.wait_metrics(requests_running=0, requests_waiting=0)


@pytest.mark.parametrize("twice", [True, False])
def test_nonsense_ends_the_stream(mux: MuxClient, twice: bool) -> None:
    mux.start(1, make_generate(max_tokens=2000))
    if twice:
        mux.start(1, make_generate())
    else:
        mux.send(stream_id=2)
    failure = fails(mux.call)
    assert (failure.code, failure.fields) == ("INVALID_ARGUMENT", ("stream_id",) if twice else ("op",))


def test_half_close_lets_the_rest_finish(mux: MuxClient) -> None:
    mux.start(1, make_generate(max_tokens=20))
    mux.close()
    mux.messages += list(mux.call)
    assert collect(responses(mux.items(1)))[0].token_ids == expected_tokens(20)
    assert mux.call.code() is grpc.StatusCode.OK


def test_losing_the_stream_frees_everything(daemon: DaemonProcess, channel: grpc.Channel) -> None:
    client = MuxClient(channel)
    for stream_id in range(10):
        client.start(stream_id, make_generate(seed=stream_id, max_tokens=2000))
    client.read()
    client.call.cancel()
    daemon.wait_metrics(requests_running=0, requests_waiting=0)
    with pytest.raises(grpc.RpcError) as raised:
        client.read()
    assert decode_failure(raised.value).code == "CANCELLED"
