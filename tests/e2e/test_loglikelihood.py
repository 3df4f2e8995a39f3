"""What evaluation harnesses do: score continuations. Their HTTP request and the Score RPC give the same numbers."""

from __future__ import annotations

import httpx
import pytest

from inferd.testing.product import Product
from inferd.v1 import inference_pb2, inference_pb2_grpc

ITEMS = [
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a small red ball."),
    ("Water at sea level", " boils at 100 degrees"),
    ("A good programmer often said that", " something nobody had ever seen before"),
]


def tokens(product: Product, text: str) -> list[int]:
    response = httpx.post(f"{product.http}/tokenize", json={"prompt": text})
    found: list[int] = response.json()["tokens"]
    return found


def harness(product: Product, context: str, continuation: str) -> tuple[float, bool]:
    """lm-eval's local-completions: token ids, echo, logprobs 1, one token more; greedy when each token is the best."""
    ids, start = tokens(product, context + continuation), len(tokens(product, context))
    body = {"model": "demo", "prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, "seed": 1}
    (choice,) = httpx.post(f"{product.http}/v1/completions", json=body, timeout=60).json()["choices"]
    columns = choice["logprobs"]
    values, tops = columns["token_logprobs"][start:-1], columns["top_logprobs"][start:-1]
    names = columns["tokens"][start:-1]
    return sum(values), all(max(top, key=top.get) == name for top, name in zip(tops, names, strict=True))


def test_score_agrees_with_echoed_logprobs(product: Product) -> None:
    items = [{"context": {"text": context}, "continuation": {"text": rest}} for context, rest in ITEMS]
    with product.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        response = stub.Score(inference_pb2.ScoreRequest(continuations={"items": items}), timeout=60)
    expected = [harness(product, *item) for item in ITEMS]
    assert list(response.scores) == [pytest.approx(total, abs=1e-3) for total, _ in expected]
    assert list(response.greedy) == [greedy for _, greedy in expected]
    assert response.scores[0] > response.scores[1]


def test_labels_are_ranked_as_generation_would(product: Product) -> None:
    paris, ball = (tokens(product, text)[0] for text in (" Paris", " banana"))
    task = {"prompts": [{"text": ITEMS[0][0]}], "label_token_ids": [ball, paris], "apply_softmax": True}
    with product.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        response = stub.Score(inference_pb2.ScoreRequest(labels=task), timeout=60)
    banana, capital = response.scores
    assert banana + capital == pytest.approx(1)
    assert capital > 0.9
