"""BERT encoders: BertModel (embeddings) and BertForSequenceClassification (cross-encoders, classifiers)."""

from __future__ import annotations

from collections.abc import Iterator

from inferd.errors import StartupError
from inferd.models.encoder_spec import Activation, EncoderSpec
from inferd.models.hf_config import Config, positive_float, positive_int
from inferd.models.weights import Rule

CLASSIFIER = "BertForSequenceClassification"
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def spec_from_hf(config: Config, architecture: str) -> EncoderSpec:
    """Raises StartupError for a config of something that only looks like BERT."""
    hidden, heads = positive_int(config, "hidden_size"), positive_int(config, "num_attention_heads")
    if hidden % heads:
        raise StartupError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    activation = config.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise StartupError(f"config.json: hidden_act {activation!r} is not supported ({', '.join(ACTIVATIONS)} are)")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise StartupError(f"config.json: position_embedding_type {positions!r} is not supported (absolute is)")
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise StartupError(f"config.json: {key} is set, and {architecture} is served as an encoder")
    return EncoderSpec(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=positive_int(config, "intermediate_size"),
        num_layers=positive_int(config, "num_hidden_layers"),
        num_heads=heads,
        vocab_size=positive_int(config, "vocab_size"),
        token_types=positive_int(config, "type_vocab_size", 2),
        norm_eps=positive_float(config, "layer_norm_eps", 1e-12),
        activation=ACTIVATIONS[activation],
        context_length=positive_int(config, "max_position_embeddings", 512),
        num_labels=label_count(config) if architecture == CLASSIFIER else 0,
    )


def label_count(config: Config) -> int:
    """Labels of a classifier: those of id2label, else num_labels, else transformers' default of 2."""
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) and names else positive_int(config, "num_labels", 2)


def weight_rules(spec: EncoderSpec) -> tuple[Rule, ...]:
    prefix = "bert." if spec.num_labels else ""
    return (*_embedding_rules(spec, prefix), *_layer_rules(spec, prefix), *_head_rules(spec))


def _embedding_rules(spec: EncoderSpec, prefix: str) -> Iterator[Rule]:
    hidden = spec.hidden_size
    yield Rule(f"{prefix}embeddings.word_embeddings.weight", "words", (spec.vocab_size, hidden))
    yield Rule(f"{prefix}embeddings.position_embeddings.weight", "positions", (spec.context_length, hidden))
    yield Rule(f"{prefix}embeddings.token_type_embeddings.weight", "types", (spec.token_types, hidden))
    yield from _norm_rules(f"{prefix}embeddings", "embedding_norm", hidden)


def _layer_rules(spec: EncoderSpec, prefix: str) -> Iterator[Rule]:
    layer, hidden, inner = f"{prefix}encoder.layer.{{layer}}", spec.hidden_size, spec.intermediate_size
    for part in ("query", "key", "value"):
        yield from _linear_rules(f"{layer}.attention.self.{part}", "qkv", hidden, hidden)
    yield from _linear_rules(f"{layer}.attention.output.dense", "o", hidden, hidden)
    yield from _norm_rules(f"{layer}.attention.output", "attention_norm", hidden)
    yield from _linear_rules(f"{layer}.intermediate.dense", "up", inner, hidden)
    yield from _linear_rules(f"{layer}.output.dense", "down", hidden, inner)
    yield from _norm_rules(f"{layer}.output", "mlp_norm", hidden)


def _head_rules(spec: EncoderSpec) -> Iterator[Rule]:
    if spec.num_labels:
        yield from _linear_rules("bert.pooler.dense", "pooler", spec.hidden_size, spec.hidden_size)
        yield from _linear_rules("classifier", "classifier", spec.num_labels, spec.hidden_size)


def _linear_rules(name: str, target: str, rows: int, columns: int) -> Iterator[Rule]:
    yield Rule(f"{name}.weight", target, (rows, columns))
    yield Rule(f"{name}.bias", f"{target}_bias", (rows,))


def _norm_rules(name: str, target: str, hidden: int) -> Iterator[Rule]:
    yield Rule(f"{name}.LayerNorm.weight", target, (hidden,))
    yield Rule(f"{name}.LayerNorm.bias", f"{target}_bias", (hidden,))
