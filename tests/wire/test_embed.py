"""Embed and Score over gRPC, with vectors and probabilities that can be computed by hand."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from inferd.testing.fake_daemon import VOCAB_SIZE, DaemonProcess, fake_config
from inferd.testing.fake_executor import fake_vector
from inferd.testing.wire import Failure, decode_failure
from inferd.v1 import common_pb2, inference_pb2, model_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub
from inferd.v1.model_pb2_grpc import ModelServiceStub

Truncation = common_pb2.Truncation


@pytest.fixture(scope="module")
def embedder() -> Iterator[grpc.Channel]:
    """A daemon that generates and embeds: 4 dimensions, not normalized, cut to 2 on request, context 40."""
    with DaemonProcess(fake_config(pooling="mean"), {"max_context_tokens": 40}) as daemon:
        daemon.wait_ready()
        with grpc.insecure_channel(daemon.address) as channel:
            yield channel


@pytest.fixture
def embedding(embedder: grpc.Channel) -> InferenceServiceStub:
    return InferenceServiceStub(embedder)


def texts(*values: str) -> list[common_pb2.Prompt]:
    return [common_pb2.Prompt(text=value) for value in values]


def rows(response: inference_pb2.EmbedResponse, dtype: str = "<f4") -> np.ndarray:
    return np.frombuffer(response.vectors, dtype).reshape(-1, response.dimensions)


def failure(call: Callable[[], object]) -> Failure:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return decode_failure(caught.value)


def test_vectors_come_in_order_with_counts_usage_and_timing(embedding: InferenceServiceStub) -> None:
    inputs = [*texts("abc", "a"), common_pb2.Prompt(token_ids={"ids": [7, 9]})]
    response = embedding.Embed(inference_pb2.EmbedRequest(inputs=inputs, readable=True))

    expected = [fake_vector(list(b"abc")), fake_vector(list(b"a")), fake_vector([7, 9])]
    assert response.vectors == b"".join(expected)
    assert (response.dimensions, response.dtype) == (4, inference_pb2.VECTOR_DTYPE_FLOAT32)
    assert list(response.token_counts) == [3, 1, 2]
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (6, 0)
    assert response.timing.total_us > 0
    assert [list(vector.values) for vector in response.float_vectors] == [
        list(struct.unpack("<4f", row)) for row in expected
    ]


def test_cut_vectors_are_normalized_again(embedding: InferenceServiceStub) -> None:
    ask = inference_pb2.EmbedRequest(inputs=texts("abc", "zz"), dimensions=2)
    vectors = np.array([[3, sum(b"abc")], [2, sum(b"zz")]], np.float32)
    cut = rows(embedding.Embed(ask))
    np.testing.assert_allclose(cut, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), rtol=1e-6)
    ask.normalize = False
    np.testing.assert_array_equal(rows(embedding.Embed(ask)), vectors)


def test_normalize_is_the_callers_choice(embedding: InferenceServiceStub) -> None:
    vectors = rows(embedding.Embed(inference_pb2.EmbedRequest(inputs=texts("abc", "d"), normalize=True)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)


def test_half_precision(embedding: InferenceServiceStub) -> None:
    plain = rows(embedding.Embed(inference_pb2.EmbedRequest(inputs=texts("abc"), normalize=True)))
    ask = inference_pb2.EmbedRequest(inputs=texts("abc"), normalize=True, dtype="VECTOR_DTYPE_FLOAT16")
    half = embedding.Embed(ask)
    assert half.dtype == inference_pb2.VECTOR_DTYPE_FLOAT16
    np.testing.assert_array_equal(rows(half, "<f2"), plain.astype("<f2"))
    ask.dtype = inference_pb2.VECTOR_DTYPE_BFLOAT16
    bits = rows(embedding.Embed(ask), "<u2").astype("<u4") << 16
    np.testing.assert_allclose(bits.view("<f4"), plain, rtol=2**-8)


def test_a_batch_larger_than_the_engine_takes(embedding: InferenceServiceStub) -> None:
    inputs = [common_pb2.Prompt(token_ids={"ids": [index % 250] * (1 + index % 30)}) for index in range(256)]
    response = embedding.Embed(inference_pb2.EmbedRequest(inputs=inputs))
    assert response.vectors == b"".join(fake_vector(list(one.token_ids.ids)) for one in inputs)


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"truncation": Truncation.TRUNCATION_KEEP_START}, range(40)),
        ({"truncation": Truncation.TRUNCATION_KEEP_END}, range(10, 50)),
        ({"max_tokens": 5}, range(5)),
        ({"max_tokens": 5, "truncation": Truncation.TRUNCATION_KEEP_END}, range(45, 50)),
    ],
)
def test_truncation(embedding: InferenceServiceStub, fields: dict[str, Any], kept: range) -> None:
    inputs = [common_pb2.Prompt(token_ids={"ids": range(50)})]
    response = embedding.Embed(inference_pb2.EmbedRequest(inputs=inputs, **fields))
    assert response.vectors == fake_vector(list(kept))
    assert list(response.token_counts) == [len(kept)]


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"inputs": []}, "INVALID_PARAMETER", "inputs"),
        ({"inputs": texts("a", "")}, "INVALID_PARAMETER", "inputs[1]"),
        ({"inputs": texts("a") * 257}, "INVALID_PARAMETER", "inputs"),
        ({"inputs": texts("a" * 41)}, "CONTEXT_LENGTH_EXCEEDED", "inputs"),
        ({"inputs": texts("a" * 41), "truncation": 1, "max_tokens": 10}, "CONTEXT_LENGTH_EXCEEDED", "inputs"),
        ({"inputs": texts("a"), "dimensions": 3}, "INVALID_PARAMETER", "dimensions"),
        ({"inputs": texts("a"), "max_tokens": 0}, "INVALID_PARAMETER", "max_tokens"),
        ({"inputs": texts("a"), "dtype": 9}, "INVALID_PARAMETER", "dtype"),
        ({"inputs": texts("a"), "truncation": 9}, "INVALID_PARAMETER", "truncation"),
        ({"inputs": texts("a"), "request_id": "no spaces"}, "INVALID_PARAMETER", "request_id"),
        ({"inputs": [common_pb2.Prompt(token_ids={"ids": [VOCAB_SIZE]})]}, "INVALID_PARAMETER", "inputs[0].token_ids"),
        ({"inputs": texts("a"), "model": "other"}, "MODEL_NOT_FOUND", None),
    ],
)
def test_what_cannot_be_embedded(
    embedding: InferenceServiceStub, fields: dict[str, Any], code: str, field: str | None
) -> None:
    found = failure(lambda: embedding.Embed(inference_pb2.EmbedRequest(**fields)))
    assert found.reason == code
    assert found.fields == ((field,) if field else ())


def test_a_generator_embeds_nothing(stub: InferenceServiceStub) -> None:
    found = failure(lambda: stub.Embed(inference_pb2.EmbedRequest(inputs=texts("a"))))
    assert (found.code, found.reason) == ("FAILED_PRECONDITION", "TASK_NOT_SUPPORTED")
    assert found.metadata == {"model": "fake", "task": "embed"}


def test_model_info_tells_how_vectors_are_made(embedder: grpc.Channel) -> None:
    info = ModelServiceStub(embedder).GetModelInfo(model_pb2.GetModelInfoRequest())
    assert {model_pb2.TASK_GENERATE, model_pb2.TASK_EMBED, model_pb2.TASK_SCORE_PAIRS} < set(info.card.tasks)
    assert (info.embedding.dimensions, info.embedding.pooling, info.embedding.normalized) == (4, "mean", False)
    assert list(info.embedding.matryoshka_dimensions) == [2]


def test_an_expired_deadline_frees_everything(embedder: grpc.Channel, embedding: InferenceServiceStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        embedding.Embed(inference_pb2.EmbedRequest(inputs=texts("a") * 200), timeout=1e-4)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert embedding.Embed(inference_pb2.EmbedRequest(inputs=texts("a"))).vectors == fake_vector(list(b"a"))


def cosine(first: str, second: str) -> float:
    a, b = (np.frombuffer(fake_vector(list(text.encode())), "<f4").astype(float) for text in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_pairs_and_rerank_are_similarities(embedding: InferenceServiceStub) -> None:
    pairs = [{"first": text, "second": other} for text, other in zip(texts("abc", "x"), texts("zz", "x"), strict=True)]
    response = embedding.Score(inference_pb2.ScoreRequest(pairs={"pairs": pairs}))
    np.testing.assert_allclose(response.scores, [cosine("abc", "zz"), 1.0], atol=1e-6)
    assert (response.columns, response.usage.prompt_tokens) == (1, 7)
    documents = ["zz", "abcd", "q"]
    task = {"query": texts("abc")[0], "documents": texts(*documents)}
    reranked = embedding.Score(inference_pb2.ScoreRequest(rerank=task))
    np.testing.assert_allclose(reranked.scores, [cosine("abc", each) for each in documents], atol=1e-6)
    assert reranked.usage.prompt_tokens == 3 + 7  # the query was read once


def fake_logprob(token_id: int) -> float:
    return -(token_id % 10) - 1.0


def test_continuations(stub: InferenceServiceStub) -> None:
    items = [
        {"context": texts("ab")[0], "continuation": texts("cde")[0]},
        {"context": {"token_ids": {"ids": [4]}}, "continuation": {"token_ids": {"ids": [11, 12]}}},
        {"context": {"token_ids": {"ids": [4, 5]}}, "continuation": texts("f")[0]},
    ]
    task = {"items": items, "token_details": True}
    response = stub.Score(inference_pb2.ScoreRequest(continuations=task))
    expected = [list(b"cde"), [11, 12], list(b"f")]
    assert list(response.scores) == [sum(map(fake_logprob, ids)) for ids in expected]
    assert list(response.greedy) == [True, True, True]  # the fake's ranks are all 1
    assert [list(detail.token_ids) for detail in response.details] == expected
    assert [detail.start_position for detail in response.details] == [2, 1, 2]
    assert [list(detail.values) for detail in response.details] == [list(map(fake_logprob, ids)) for ids in expected]
    assert response.usage.prompt_tokens == 5 + 3 + 3


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"context": {"text": ""}, "continuation": {"text": "a"}}, "continuations.items[0].context"),
        ({"context": {"text": "a"}, "continuation": {"text": ""}}, "continuations.items[0].continuation"),
        ({"context": {"text": "a"}}, "continuations.items[0].continuation"),
    ],
)
def test_continuations_need_both_texts(stub: InferenceServiceStub, item: dict[str, Any], field: str) -> None:
    found = failure(lambda: stub.Score(inference_pb2.ScoreRequest(continuations={"items": [item]})))
    assert found.fields == (field,)


def test_a_long_context_is_cut_at_its_start_when_asked(embedding: InferenceServiceStub) -> None:
    item = {"context": {"token_ids": {"ids": [3] * 60}}, "continuation": {"token_ids": {"ids": [11, 12]}}}
    ask = inference_pb2.ScoreRequest(continuations={"items": [item]})
    assert failure(lambda: embedding.Score(ask)).reason == "CONTEXT_LENGTH_EXCEEDED"
    ask.truncation = common_pb2.TRUNCATION_KEEP_END
    response = embedding.Score(ask)
    assert response.usage.prompt_tokens == 40
    assert list(response.scores) == [fake_logprob(11) + fake_logprob(12)]
    ask.truncation = common_pb2.TRUNCATION_KEEP_START
    assert failure(lambda: embedding.Score(ask)).fields == ("truncation",)


def test_labels(stub: InferenceServiceStub) -> None:
    ask = inference_pb2.ScoreRequest(labels={"prompts": texts("ab", "ab"), "label_token_ids": [9, 7, 8]})
    response = stub.Score(ask)
    assert response.columns == 3
    # The fake gives every asked-for id -100.
    np.testing.assert_allclose(response.scores, [math.exp(-100)] * 6, rtol=0.05)
    ask.labels.apply_softmax = True
    np.testing.assert_allclose(stub.Score(ask).scores, [1 / 3] * 6, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "task"),
        ({"labels": {"prompts": texts("a")}}, "labels.label_token_ids"),
        ({"labels": {"prompts": texts("a"), "label_token_ids": [VOCAB_SIZE]}}, "labels.label_token_ids"),
        ({"labels": {"prompts": texts("a"), "label_token_ids": range(65)}}, "labels.label_token_ids"),
        ({"labels": {"prompts": texts("a"), "label_token_ids": [1]}, "activation": True}, "activation"),
        ({"continuations": {}}, "continuations.items"),
    ],
)
def test_what_cannot_be_scored(stub: InferenceServiceStub, fields: dict[str, Any], field: str) -> None:
    found = failure(lambda: stub.Score(inference_pb2.ScoreRequest(**fields)))
    assert (found.reason, found.fields) == ("INVALID_PARAMETER", (field,))


@pytest.mark.parametrize("task", ["pairs", "rerank", "classes"])
def test_a_generator_has_no_such_scores(stub: InferenceServiceStub, task: str) -> None:
    ask = inference_pb2.ScoreRequest()
    getattr(ask, task).SetInParent()
    assert failure(lambda: stub.Score(ask)).reason == "TASK_NOT_SUPPORTED"
