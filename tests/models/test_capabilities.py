"""Which tasks a checkpoint serves, and how it makes vectors and scores, from its configuration alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd.checkpoint import Checkpoint, TokenizerFiles
from inferd.checkpoint.sentence_modules import SentenceModules
from inferd.config import Pooling
from inferd.errors import StartupError
from inferd.models.pooling import Capabilities, activation_of, capabilities, matryoshka
from inferd.models.registry import model_spec

BERT: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
    "max_position_embeddings": 16,
}
LLAMA = BERT | {"architectures": ["LlamaForCausalLM"]}
SENTENCE = SentenceModules("last", normalize=True, max_tokens=12, prompts={"query": "q: ", "passage": "p: "})


def found(config: dict[str, Any], pooling: Pooling = "auto", sentence: SentenceModules | None = None) -> Capabilities:
    checkpoint = Checkpoint(Path("x"), "safetensors", config, {}, TokenizerFiles(None), {}, {}, "f")
    return capabilities(replace(checkpoint, sentence=sentence), model_spec(config), pooling)


def test_a_decoder_embeds_when_the_folder_or_the_user_says_how() -> None:
    assert found(LLAMA) == Capabilities(generates=True)
    by_flag = found(LLAMA, "mean").embedding
    assert by_flag is not None
    assert (by_flag.pooling, by_flag.dimensions, by_flag.normalize) == ("mean", 8, True)
    by_folder = found(LLAMA, sentence=SENTENCE)
    assert by_folder.generates
    assert by_folder.embedding is not None
    assert (by_folder.embedding.pooling, by_folder.embedding.max_tokens) == ("last", 12)
    assert (by_folder.embedding.query_prefix, by_folder.embedding.document_prefix) == ("q: ", "p: ")
    over = found(LLAMA, "mean", SENTENCE).embedding
    assert over is not None
    assert over.pooling == "mean"
    with pytest.raises(StartupError, match="first token of a decoder"):
        found(LLAMA, "cls")


def test_a_bare_decoder_embeds_by_its_last_token_and_does_not_generate() -> None:
    bare = LLAMA | {"architectures": ["LlamaModel"]}
    plain = found(bare)
    assert not plain.generates
    assert plain.embedding is not None
    assert (plain.embedding.pooling, plain.embedding.normalize) == ("last", True)
    by_flag, by_folder = (
        found(bare, "mean").embedding,
        found(bare, sentence=replace(SENTENCE, pooling="mean")).embedding,
    )
    assert by_flag is not None
    assert by_folder is not None
    assert (by_flag.pooling, by_folder.pooling, by_folder.max_tokens) == ("mean", "mean", 12)
    with pytest.raises(StartupError, match="first token of a decoder"):
        found(bare, "cls")


def test_an_encoder_embeds_by_the_mean_unless_told_otherwise() -> None:
    config = BERT | {"architectures": ["BertModel"]}
    plain = found(config)
    assert not plain.generates
    assert plain.embedding is not None
    assert (plain.embedding.pooling, plain.embedding.normalize, plain.embedding.max_tokens) == ("mean", True, None)
    by_flag = found(config, "cls").embedding
    assert by_flag is not None
    assert by_flag.pooling == "cls"


def test_a_classification_head_gives_no_vectors() -> None:
    config = BERT | {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "no", "1": "yes"}}
    capable = found(config)
    assert capable.embedding is None
    assert capable.classifier is not None
    assert (capable.classifier.labels, capable.classifier.activation) == (("no", "yes"), "softmax")
    with pytest.raises(StartupError, match="classification head"):
        found(config, "mean")


@pytest.mark.parametrize(
    ("config", "labels", "activation"),
    [
        ({}, 1, "sigmoid"),
        ({}, 3, "softmax"),
        ({"problem_type": "regression"}, 1, "identity"),
        ({"problem_type": "multi_label_classification"}, 3, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, 1, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, 3, "sigmoid"),
    ],
)
def test_activation(config: dict[str, Any], labels: int, activation: str) -> None:
    assert activation_of(config, labels) == activation


def test_an_activation_that_is_not_built_does_not_start() -> None:
    with pytest.raises(StartupError, match="Tanh"):
        activation_of({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, 1)


def test_matryoshka_sizes() -> None:
    assert matryoshka({}, 8) == ()
    assert matryoshka({"is_matryoshka": True}, 4) == (1, 2, 3, 4)
    assert matryoshka({"is_matryoshka": True, "matryoshka_dimensions": [4, 2, 4]}, 8) == (2, 4)
    for bad in ([0], [9], ["4"], 4):
        with pytest.raises(StartupError, match="matryoshka_dimensions"):
            matryoshka({"matryoshka_dimensions": bad}, 8)
