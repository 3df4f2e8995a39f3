"""The bidi bulk streams: answers by item id, errors in their place, no more in work than the server takes."""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.fake_executor import fake_vector
from inferd.testing.wire import fails
from inferd.v1 import common_pb2, inference_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub


@pytest.fixture(scope="module")
def bulk() -> Iterator[InferenceServiceStub]:
    """A daemon whose engine holds few requests."""
    config = fake_config(pooling="mean", scheduler={"max_num_seqs": 4, "max_waiting": 6})
    with DaemonProcess(config) as daemon:
        daemon.wait_ready()
        # Small windows fill sooner.
        options = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
        with grpc.insecure_channel(daemon.address, options=options) as channel:
            yield InferenceServiceStub(channel)


def embed_item(item_id: int, *texts: str, **fields: Any) -> inference_pb2.EmbedStreamRequest:
    inputs = [common_pb2.Prompt(text=text) for text in texts]
    return inference_pb2.EmbedStreamRequest(item_id=item_id, request={"inputs": inputs, **fields})


def test_hundreds_of_items_by_their_ids(bulk: InferenceServiceStub) -> None:
    texts = {index: ["x" * (1 + index % 20), "y"] for index in range(300)}
    answers = {
        answer.item_id: answer
        for answer in bulk.EmbedStream(iter([embed_item(index, *both) for index, both in texts.items()]))
    }
    assert answers.keys() == texts.keys()
    for index, both in texts.items():
        assert answers[index].response.vectors == b"".join(fake_vector(list(text.encode())) for text in both)


def test_a_failed_item_leaves_its_neighbours_alone(bulk: InferenceServiceStub) -> None:
    items = [
        embed_item(1, "a"),
        embed_item(2),
        embed_item(3, "b", dimensions=3),
        inference_pb2.EmbedStreamRequest(item_id=4),
        embed_item(5, "c", model="other"),
        embed_item(6, "d"),
    ]
    answers = {answer.item_id: answer for answer in bulk.EmbedStream(iter(items))}
    assert answers[1].response.vectors == fake_vector(list(b"a"))
    assert answers[6].response.vectors == fake_vector(list(b"d"))
    invalid = grpc.StatusCode.INVALID_ARGUMENT.value[0]
    errors = {index: answers[index].error for index in (2, 3, 4, 5)}
    assert [(error.code, error.field) for error in errors.values()][:3] == [
        (invalid, "inputs"),
        (invalid, "dimensions"),
        (invalid, "request"),
    ]
    assert (errors[5].reason, errors[5].metadata["model"]) == ("MODEL_NOT_FOUND", "other")


def test_score_and_tokenize_streams(bulk: InferenceServiceStub) -> None:
    labels = {"prompts": [{"text": "ab"}], "label_token_ids": [3, 4], "apply_softmax": True}
    scores = list(
        bulk.ScoreStream(
            iter(inference_pb2.ScoreStreamRequest(item_id=index, request={"labels": labels}) for index in range(20))
        )
    )
    assert sorted(answer.item_id for answer in scores) == list(range(20))
    assert all(list(answer.response.scores) == [0.5, 0.5] for answer in scores)
    wanted = [inference_pb2.TokenizeStreamRequest(item_id=9, request={"inputs": [{"text": "hi"}]})]
    (tokens,) = bulk.TokenizeStream(iter(wanted))
    assert (tokens.item_id, list(tokens.response.inputs[0].token_ids)) == (9, list(b"hi"))


def test_an_empty_stream_ends_at_once(bulk: InferenceServiceStub) -> None:
    assert list(bulk.EmbedStream(iter([]), timeout=10)) == []


def test_malformed_bytes_end_the_stream(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/inferd.v1.InferenceService/TokenizeStream")
    found = fails(call(iter([b"\xff\xff"]), timeout=10))  # type: ignore[arg-type]  # untyped in the stubs
    assert (found.code, found.reason) == ("INVALID_ARGUMENT", "INVALID_PARAMETER")


class Source:
    """Items that are made when they are asked for, and counted."""

    def __init__(self, texts: list[str]) -> None:
        self.taken = 0
        self._texts = texts
        self.more = threading.Condition()

    def __iter__(self) -> Iterator[inference_pb2.TokenizeStreamRequest]:
        for index, text in enumerate(self._texts):
            with self.more:
                self.taken += 1
                self.more.notify_all()
            yield inference_pb2.TokenizeStreamRequest(item_id=index, request={"inputs": [{"text": text}]})


def test_a_reader_that_stops_is_not_read_from(bulk: InferenceServiceStub) -> None:
    """Once the windows of HTTP/2 are full of answers, nothing moves until the client reads."""
    count = 150
    source = Source(["z" * 60_000] * count)
    call = bulk.TokenizeStream(iter(source))
    with source.more:
        while source.more.wait_for(lambda seen=source.taken: source.taken > seen, timeout=1.0):  # type: ignore[misc]  # a bound value
            pass
    assert source.taken < count
    assert len(list(call)) == count
    assert source.taken == count


def test_a_repeated_id_is_refused_while_the_first_is_in_work() -> None:
    with DaemonProcess(fake_config(pooling="mean"), {"behaviour": {"step_s": 0.3}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            items = [embed_item(1, "slow"), embed_item(1, "again")]
            answers = list(InferenceServiceStub(channel).EmbedStream(iter(items)))
    kinds = {answer.WhichOneof("result"): answer for answer in answers}
    assert kinds["error"].error.reason == "DUPLICATE_REQUEST"
    assert kinds["response"].response.vectors == fake_vector(list(b"slow"))


def test_cancelling_a_stream_frees_the_engine() -> None:
    with DaemonProcess(fake_config(pooling="mean"), {"behaviour": {"step_s": 0.05}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            feed: queue.SimpleQueue[inference_pb2.EmbedStreamRequest | None] = queue.SimpleQueue()
            for index in range(30):
                feed.put(embed_item(index, *["x" * 600] * 20))
            call = InferenceServiceStub(channel).EmbedStream(iter(feed.get, None))
            next(call)
            call.cancel()
            daemon.wait_metrics(requests_running=0, requests_waiting=0, kv_cache_usage_ratio=0)
            feed.put(None)  # lets the feeding thread end


def test_a_server_that_drains_answers_what_it_has_read_and_ends_the_stream() -> None:
    with DaemonProcess(fake_config(pooling="mean"), {"behaviour": {"step_s": 0.2}}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            feed: queue.SimpleQueue[inference_pb2.EmbedStreamRequest | None] = queue.SimpleQueue()
            call = InferenceServiceStub(channel).EmbedStream(iter(feed.get, None))
            feed.put(embed_item(1, "a"))
            assert next(call).response.vectors == fake_vector(list(b"a"))
            daemon.signal(signal.SIGTERM)
            found = fails(call)
            feed.put(None)
        assert (found.code, found.reason) == ("UNAVAILABLE", "DRAINING")
        assert daemon.wait() == 0
