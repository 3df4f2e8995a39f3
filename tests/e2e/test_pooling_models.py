"""Embedding models and cross-encoders as users run them: both protocols against transformers, shapes of the peers."""

from __future__ import annotations

import base64
import random
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import BertForSequenceClassification, BertModel, Qwen3Config, Qwen3Model

from inferd.testing.product import Product, running_product
from inferd.testing.tiny_bert import VOCABULARY, WORDS, add_sentence_modules, make_tiny_bert, tiny_tokenizer
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc, model_pb2, model_pb2_grpc

rng = random.Random(17)
SENTENCES = [" ".join(rng.choice((*WORDS, "zebra", "Ünïcode,")) for _ in range(rng.randint(1, 12))) for _ in range(40)]
QUERY, DOCUMENTS = (
    "the quick cat",
    ["a dog ran", "the cat sat on the mat", "moon", "the quick red cat flew over a house"],
)
MAX_TOKENS = 32


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Product, Any]]:
    """A served sentence-transformers folder, and its transformers model."""
    folder = tmp_path_factory.mktemp("tiny-embedder")
    model = make_tiny_bert(folder, BertModel, matryoshka_dimensions=[8, 16])
    add_sentence_modules(folder, max_seq_length=MAX_TOKENS, prompts={"query": "find: ", "document": ""})
    with running_product(str(folder), "--served-model-name", "tiny", "--threads", "1") as product:
        yield product, model


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Product, Any]]:
    folder = tmp_path_factory.mktemp("tiny-reranker")
    model = make_tiny_bert(folder, BertForSequenceClassification, num_labels=1)
    with running_product(str(folder), "--served-model-name", "tiny", "--threads", "1") as product:
        yield product, model


@pytest.fixture(scope="module")
def bare_decoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Product, Any]]:
    """A decoder saved without its head, as a sentence-transformers folder that takes the last token."""
    folder = tmp_path_factory.mktemp("tiny-bare-decoder")
    torch.manual_seed(6)
    config = Qwen3Config(
        vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=16,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = Qwen3Model(config).eval()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    add_sentence_modules(folder, pooling="lasttoken", max_seq_length=MAX_TOKENS)
    with running_product(str(folder), "--served-model-name", "tiny", "--threads", "1") as product:
        yield product, model


def expected_vectors(model: Any, texts: list[str]) -> np.ndarray:
    """Mean over all tokens, normalized: what the folder's modules say."""
    vectors = []
    for text in texts:
        ids = tiny_tokenizer()(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            vectors.append(model(ids).last_hidden_state[0].mean(0))
    return torch.nn.functional.normalize(torch.stack(vectors)).numpy()


def post(product: Product, path: str, body: dict[str, Any], status: int = 200) -> Any:
    response = httpx.post(product.http + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    return response.json()


def test_the_sdk_gets_the_vectors_of_transformers(embedder: tuple[Product, Any]) -> None:
    """The SDK asks for base64 unless told otherwise."""
    product, model = embedder
    with openai.OpenAI(base_url=f"{product.http}/v1", api_key="unused", max_retries=0) as sdk:
        default = sdk.embeddings.create(model="tiny", input=SENTENCES)
        floats = sdk.embeddings.create(model="tiny", input=SENTENCES[0], encoding_format="float")
    assert [entry.index for entry in default.data] == list(range(len(SENTENCES)))
    expected = expected_vectors(model, SENTENCES)
    np.testing.assert_allclose([entry.embedding for entry in default.data], expected, atol=1e-5)
    assert floats.data[0].embedding == default.data[0].embedding
    assert default.usage.prompt_tokens == sum(len(tiny_tokenizer()(text)["input_ids"]) for text in SENTENCES)


def test_base64_is_the_float32_bytes(embedder: tuple[Product, Any]) -> None:
    product, _ = embedder
    plain = post(product, "/v1/embeddings", {"input": "a cat"})
    assert set(plain) >= {"object", "data", "model", "usage"}
    assert set(plain["usage"]) == {"prompt_tokens", "total_tokens"}
    vector = plain["data"][0]["embedding"]
    raw = base64.b64decode(
        post(product, "/v1/embeddings", {"input": "a cat", "encoding_format": "base64"})["data"][0]["embedding"]
    )
    assert struct.unpack("<32f", raw) == tuple(np.float32(vector))
    big = {"input": "a cat", "encoding_format": "base64", "endianness": "big"}
    assert struct.unpack(
        ">32f", base64.b64decode(post(product, "/v1/embeddings", big)["data"][0]["embedding"])
    ) == tuple(vector)
    half = {"input": "a cat", "encoding_format": "base64", "embed_dtype": "float16"}
    halves = np.frombuffer(base64.b64decode(post(product, "/v1/embeddings", half)["data"][0]["embedding"]), "<f2")
    np.testing.assert_array_equal(halves, np.float32(vector).astype("<f2"))


def test_token_ids_are_taken_as_they_are(embedder: tuple[Product, Any]) -> None:
    product, _ = embedder
    ids = tiny_tokenizer()(["a cat", "the moon"])["input_ids"]
    by_text = post(product, "/v1/embeddings", {"input": ["a cat", "the moon"]})
    assert post(product, "/v1/embeddings", {"input": ids})["data"] == by_text["data"]
    assert post(product, "/v1/embeddings", {"input": ids[1]})["data"][0]["embedding"] == by_text["data"][1]["embedding"]


def test_more_inputs_than_one_call_takes(embedder: tuple[Product, Any]) -> None:
    product, _ = embedder
    inputs = [SENTENCES[index % 7] for index in range(600)]
    data = post(product, "/v1/embeddings", {"input": inputs})["data"]
    assert [entry["index"] for entry in data] == list(range(600))
    first = np.array([entry["embedding"] for entry in data[:7]])
    for index, entry in enumerate(data):
        np.testing.assert_allclose(entry["embedding"], first[index % 7], atol=1e-5)


def test_dimensions_are_those_it_was_trained_for(embedder: tuple[Product, Any]) -> None:
    product, model = embedder
    cut = post(product, "/v1/embeddings", {"input": SENTENCES[:3], "dimensions": 8})
    expected = expected_vectors(model, SENTENCES[:3])[:, :8]
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose([entry["embedding"] for entry in cut["data"]], expected, atol=1e-5)
    assert post(product, "/v1/embeddings", {"input": "a", "dimensions": 9}, 400)["error"]["param"] == "dimensions"
    assert post(product, "/pooling", {"input": "a", "dimensions": 8}, 400)["error"]["param"] == "dimensions"


def test_a_long_input_is_refused_or_cut_like_sentence_transformers_cuts_it(embedder: tuple[Product, Any]) -> None:
    product, model = embedder
    text = "the small dog ran over the big house " * 10
    error = post(product, "/v1/embeddings", {"input": text}, 400)["error"]
    assert (error["code"], error["param"]) == ("context_length_exceeded", "input")
    cut = post(product, "/v1/embeddings", {"input": text, "truncate_prompt_tokens": -1})
    np.testing.assert_allclose(cut["data"][0]["embedding"], expected_vectors(model, [text])[0], atol=1e-5)
    assert cut["usage"]["prompt_tokens"] == MAX_TOKENS
    shorter = post(product, "/v1/embeddings", {"input": text, "truncate_prompt_tokens": 6})
    four_words = post(product, "/v1/embeddings", {"input": "the small dog ran"})
    np.testing.assert_allclose(shorter["data"][0]["embedding"], four_words["data"][0]["embedding"], atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {"input": ""}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", ""]}, "input"),
        ("/v1/embeddings", {"input": [[]]}, "input"),
        ("/v1/embeddings", {"input": [10_000]}, "input"),
        ("/v1/embeddings", {"input": ["a"] * 2049}, "input"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "embed_dtype": "float16"}, "embed_dtype"),
        ("/v1/embeddings", {"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ("/score", {"text_1": "a"}, "text_1"),
        ("/score", {"text_1": "a", "documents": "b"}, "text_1"),
        ("/score", {"queries": ["a", "b"], "documents": ["a", "b", "c"]}, "queries"),
        ("/score", {"queries": "a", "items": []}, "items"),
        ("/rerank", {"query": "a", "documents": []}, "documents"),
        ("/rerank", {"query": "a", "documents": ["a", ""]}, "documents"),
        ("/rerank", {"query": "", "documents": ["a"]}, "query"),
    ],
)
def test_what_http_refuses(embedder: tuple[Product, Any], path: str, body: dict[str, Any], param: str) -> None:
    error = post(embedder[0], path, body, 400)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param


def test_an_embedding_model_does_only_its_own_tasks(embedder: tuple[Product, Any]) -> None:
    product, _ = embedder
    for path, body in {
        "/v1/completions": {"prompt": "a"},
        "/classify": {"input": "a"},
        "/pooling": {"input": "a", "task": "classify"},
    }.items():
        assert post(product, path, body, 400)["error"]["code"] == "unsupported_task", path
    with product.channel() as channel:
        info = model_pb2_grpc.ModelServiceStub(channel).GetModelInfo(model_pb2.GetModelInfoRequest())
    assert list(info.card.tasks) == [model_pb2.TASK_EMBED, model_pb2.TASK_SCORE_PAIRS]
    assert info.card.max_context_tokens == MAX_TOKENS
    assert (info.embedding.dimensions, info.embedding.pooling, info.embedding.normalized) == (32, "mean", True)
    assert list(info.embedding.matryoshka_dimensions) == [8, 16]
    assert (info.embedding.query_prefix, info.embedding.document_prefix) == ("find: ", "")


def test_pooling_gives_the_same_vectors(embedder: tuple[Product, Any]) -> None:
    product, _ = embedder
    reply = post(product, "/pooling", {"input": SENTENCES[:2]})
    assert [entry["object"] for entry in reply["data"]] == ["pooling", "pooling"]
    embedded = post(product, "/v1/embeddings", {"input": SENTENCES[:2]})
    assert [entry["data"] for entry in reply["data"]] == [entry["embedding"] for entry in embedded["data"]]
    raw = post(product, "/pooling", {"input": SENTENCES[:2], "use_activation": False})["data"]
    assert all(abs(np.linalg.norm(entry["data"]) - 1) > 0.01 for entry in raw)


def test_scores_of_an_embedding_model_are_cosines(embedder: tuple[Product, Any]) -> None:
    product, model = embedder
    vectors = expected_vectors(model, [QUERY, *DOCUMENTS])
    reply = post(product, "/v1/score", {"text_1": QUERY, "text_2": DOCUMENTS})
    assert [entry["object"] for entry in reply["data"]] == ["score"] * 4
    np.testing.assert_allclose([entry["score"] for entry in reply["data"]], vectors[1:] @ vectors[0], atol=1e-5)


def expected_scores(model: Any, first: str, seconds: list[str], max_length: int = 64) -> list[float]:
    scores = []
    for second in seconds:
        batch = tiny_tokenizer()(
            first, second, truncation=True, max_length=max_length, return_tensors="pt", return_token_type_ids=True
        )
        with torch.no_grad():
            scores.append(torch.sigmoid(model(**batch).logits[0, 0]).item())
    return scores


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_a_cross_encoder_reranks_as_transformers_scores(reranker: tuple[Product, Any], path: str) -> None:
    product, model = reranker
    expected = expected_scores(model, QUERY, DOCUMENTS)
    reply = post(product, path, {"model": "tiny", "query": QUERY, "documents": DOCUMENTS, "top_n": 3})
    assert set(reply) == {"id", "model", "usage", "results"}
    order = sorted(range(4), key=lambda index: -expected[index])[:3]
    assert [result["index"] for result in reply["results"]] == order
    np.testing.assert_allclose(
        [result["relevance_score"] for result in reply["results"]], [expected[index] for index in order], atol=1e-4
    )
    assert [result["document"] for result in reply["results"]] == [{"text": DOCUMENTS[index]} for index in order]


def test_pair_scores_equal_transformers(reranker: tuple[Product, Any]) -> None:
    product, model = reranker
    firsts, seconds = SENTENCES[:20], SENTENCES[20:]
    expected = [expected_scores(model, first, [second])[0] for first, second in zip(firsts, seconds, strict=True)]
    reply = post(product, "/score", {"queries": firsts, "documents": seconds})
    np.testing.assert_allclose([entry["score"] for entry in reply["data"]], expected, atol=1e-4)
    logits = post(product, "/score", {"queries": firsts, "documents": seconds, "use_activation": False})["data"]
    found = 1 / (1 + np.exp(-np.array([entry["score"] for entry in logits])))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_long_pair_loses_its_longer_text_first(reranker: tuple[Product, Any]) -> None:
    product, model = reranker
    long = "the small dog ran over the big house " * 12
    for first, second in ((QUERY, long), (long, QUERY), (long, long[4:])):
        body = {"text_1": first, "text_2": second}
        assert post(product, "/score", body, 400)["error"]["code"] == "context_length_exceeded"
        (entry,) = post(product, "/score", body | {"truncate_prompt_tokens": -1})["data"]
        assert entry["score"] == pytest.approx(expected_scores(model, first, [second])[0], abs=1e-4)
        (entry,) = post(product, "/score", body | {"truncate_prompt_tokens": 21})["data"]
        assert entry["score"] == pytest.approx(expected_scores(model, first, [second], 21)[0], abs=1e-4)


def test_a_classifier_names_its_labels(reranker: tuple[Product, Any]) -> None:
    product, model = reranker
    reply = post(product, "/classify", {"input": ["a cat", "the moon"]})
    for entry, text in zip(reply["data"], ["a cat", "the moon"], strict=True):
        with torch.no_grad():
            logit = model(**tiny_tokenizer()(text, return_tensors="pt")).logits[0, 0]
        assert (entry["label"], entry["num_classes"]) == ("LABEL_0", 1)
        assert entry["probs"][0] == pytest.approx(torch.sigmoid(logit).item(), abs=1e-4)
    assert post(product, "/pooling", {"input": "a cat"})["data"][0]["data"] == reply["data"][0]["probs"]
    assert post(product, "/v1/embeddings", {"input": "a cat"}, 400)["error"]["code"] == "unsupported_task"


def test_grpc_and_http_give_the_same_numbers(reranker: tuple[Product, Any]) -> None:
    product, _ = reranker
    task = {"query": {"text": QUERY}, "documents": [common_pb2.Prompt(text=text) for text in DOCUMENTS]}
    with product.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        response = stub.Score(inference_pb2.ScoreRequest(rerank=task))
    reply = post(product, "/score", {"text_1": QUERY, "text_2": DOCUMENTS})
    np.testing.assert_allclose(response.scores, [entry["score"] for entry in reply["data"]], atol=1e-6)
    assert response.usage.prompt_tokens == reply["usage"]["prompt_tokens"]


def test_a_decoder_without_a_head_embeds_and_nothing_else(bare_decoder: tuple[Product, Any]) -> None:
    product, model = bare_decoder
    states = []
    for text in SENTENCES:
        ids = tiny_tokenizer()(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states.append(model(ids).last_hidden_state[0, -1])
    expected = torch.nn.functional.normalize(torch.stack(states)).numpy()
    reply = post(product, "/v1/embeddings", {"input": SENTENCES, "truncate_prompt_tokens": -1})
    np.testing.assert_allclose([entry["embedding"] for entry in reply["data"]], expected, atol=2e-3)
    for path, body in {
        "/v1/completions": {"prompt": "a"},
        "/v1/completions ": {"prompt": "a", "echo": True, "max_tokens": 0, "logprobs": 1},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    }.items():
        assert post(product, path.strip(), body, 400)["error"]["code"] == "unsupported_task", path
    text = common_pb2.Prompt(text="a")
    with product.channel() as channel:
        info = model_pb2_grpc.ModelServiceStub(channel).GetModelInfo(model_pb2.GetModelInfoRequest())
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        continuation = inference_pb2.ContinuationTask.Item(context=text, continuation=text)
        task = inference_pb2.ContinuationTask(items=[continuation])
        for call, request in (
            (lambda each: list(stub.Generate(each)), inference_pb2.GenerateRequest(prompt=text)),
            (stub.Score, inference_pb2.ScoreRequest(continuations=task)),
        ):
            with pytest.raises(grpc.RpcError, match="it can embed, score_pairs") as refused:
                call(request)
            assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert list(info.card.tasks) == [model_pb2.TASK_EMBED, model_pb2.TASK_SCORE_PAIRS]
    assert (info.architecture, info.embedding.pooling) == ("Qwen3Model", "last")
    assert (list(info.constraints), info.limits.max_output_tokens) == ([], 0)
