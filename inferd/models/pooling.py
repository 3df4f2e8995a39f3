"""What a checkpoint can be asked for beside generation, and how: embeddings, classes. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from inferd.checkpoint import Checkpoint
from inferd.config import Pooling
from inferd.errors import StartupError
from inferd.models.spec import ModelSpec

Activation = Literal["sigmoid", "softmax", "identity"]


@dataclass(frozen=True, slots=True)
class Embedding:
    """How vectors are made.

    matryoshka: sizes below `dimensions` that the model was trained to be cut to. max_tokens: longest input when that is
    less than the context.
    """

    dimensions: int
    pooling: Literal["mean", "cls", "last"]
    normalize: bool
    matryoshka: tuple[int, ...] = ()
    max_tokens: int | None = None
    query_prefix: str = ""
    document_prefix: str = ""


@dataclass(frozen=True, slots=True)
class Classifier:
    """labels: names of the head's outputs, in order. activation turns its logits into scores."""

    labels: tuple[str, ...]
    activation: Activation


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the checkpoint can do."""

    generates: bool
    embedding: Embedding | None = None
    classifier: Classifier | None = None


GENERATES = Capabilities(generates=True)


def capabilities(checkpoint: Checkpoint, spec: ModelSpec, pooling: Pooling = "auto") -> Capabilities:
    """`pooling` is the caller's wish, which wins over the checkpoint's. Raises StartupError for one it cannot have."""
    if spec.classifier is not None:
        if pooling != "auto":
            raise StartupError(
                f"pooling {pooling}: {spec.architecture} has a classification head, and gives no vectors"
            )
        return Capabilities(generates=False, classifier=classifier_of(checkpoint.config, spec.classifier.num_labels))
    is_encoder, sentence = spec.is_encoder, checkpoint.sentence
    generates = spec.head is not None
    if generates and sentence is None and pooling == "auto":
        return GENERATES
    stated = sentence.pooling if sentence else ("mean" if is_encoder else "last")
    kind = stated if pooling == "auto" else pooling
    if kind == "cls" and not is_encoder:
        raise StartupError("pooling cls: the first token of a decoder has seen no other; last and mean are supported")
    prompts = sentence.prompts if sentence else {}
    return Capabilities(
        generates=generates,
        embedding=Embedding(
            dimensions=spec.hidden_size,
            pooling=kind,
            normalize=sentence is None or sentence.normalize,
            matryoshka=matryoshka(checkpoint.config, spec.hidden_size),
            max_tokens=sentence.max_tokens if sentence and not is_encoder else None,
            query_prefix=prompts.get("query", ""),
            document_prefix=prompts.get("document", prompts.get("passage", "")),
        ),
    )


def matryoshka(config: Mapping[str, Any], dimensions: int) -> tuple[int, ...]:
    """Sizes of a model trained so that the first dimensions suffice (Kusupati et al. 2022): matryoshka_dimensions of
    config.json, or every size where is_matryoshka alone is set."""
    stated = config.get("matryoshka_dimensions")
    if stated is None:
        return tuple(range(1, dimensions + 1)) if config.get("is_matryoshka") is True else ()
    if not isinstance(stated, list) or not all(type(size) is int and 0 < size <= dimensions for size in stated):
        raise StartupError(f"config.json: matryoshka_dimensions must be sizes from 1 to {dimensions}")
    return tuple(sorted(set(stated)))


def classifier_of(config: Mapping[str, Any], num_labels: int) -> Classifier:
    names = config.get("id2label") or {}
    labels = tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(num_labels))
    return Classifier(labels, activation_of(config, num_labels))


def activation_of(config: Mapping[str, Any], num_labels: int) -> Activation:
    """The activation that sentence-transformers' cross-encoders name, else that of transformers' pipelines: sigmoid for
    one label and for problems with several right answers, softmax otherwise, none for a regression."""
    section = config.get("sentence_transformers")
    stated = section.get("activation_fn") if isinstance(section, dict) else None
    stated = stated or config.get("sbert_ce_default_activation_function")
    if stated:
        name = str(stated).rpartition(".")[2].lower()
        for known in ("identity", "sigmoid", "softmax"):
            if name == known:
                return known
        raise StartupError(f"config.json: activation {stated!r} is not supported (Identity, Sigmoid, Softmax are)")
    if config.get("problem_type") == "regression":
        return "identity"
    return "sigmoid" if num_labels == 1 or config.get("problem_type") == "multi_label_classification" else "softmax"


def encoder_context(spec: ModelSpec, checkpoint: Checkpoint, max_model_len: int | None) -> int:
    """Longest input of an encoder: what was asked for, else sentence-transformers' max_seq_length, else its positions.

    Raises StartupError for more than there are positions.
    """
    stated = checkpoint.sentence.max_tokens if checkpoint.sentence else None
    if max_model_len is None:
        return min(stated or spec.context_length, spec.context_length)
    if max_model_len > spec.context_length:
        raise StartupError(
            f"max_model_len is {max_model_len}; the model's context is 1 to {spec.context_length} tokens"
        )
    return max_model_len
