"""BERT encoders: BertModel (embeddings) and BertForSequenceClassification (cross-encoders, classifiers)."""

from __future__ import annotations

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import layer_norm
from inferd.errors import StartupError
from inferd.models.family import Config, Family
from inferd.models.hf_config import activation, positive_float, positive_int
from inferd.models.names import in_layers
from inferd.models.spec import ClassifierSpec, EmbeddingSpec, ModelSpec

CLASSIFIER = "BertForSequenceClassification"


def describe(config: Config) -> ModelSpec:
    """Raises StartupError for a config of something that only looks like BERT."""
    hidden, heads = positive_int(config, "hidden_size"), positive_int(config, "num_attention_heads")
    if hidden % heads:
        raise StartupError(f"config.json: hidden_size {hidden} is no multiple of num_attention_heads {heads}")
    kind = config.get("position_embedding_type", "absolute")
    if kind != "absolute":
        raise StartupError(f"config.json: position_embedding_type {kind!r} is not supported (absolute is)")
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise StartupError(f"config.json: {key} is set, and BERT is served as an encoder")
    is_classifier = CLASSIFIER in (config.get("architectures") or ())
    positions = positive_int(config, "max_position_embeddings", 512)
    head_dim, norm = hidden // heads, layer_norm(positive_float(config, "layer_norm_eps", 1e-12))
    layer = LayerSpec(
        mixer=AttentionSpec(heads, heads, head_dim, head_dim**-0.5, is_causal=False, qkv_bias=True, o_bias=True),
        feed_forward=FeedForwardSpec(
            positive_int(config, "intermediate_size"),
            activation(config, "hidden_act", "gelu"),
            is_gated=False,
            has_bias=True,
        ),
        mixer_norm=norm,
        feed_forward_norm=norm,
        order="post",
    )
    return ModelSpec(
        architecture=CLASSIFIER if is_classifier else "BertModel",
        hidden_size=hidden,
        vocab_size=positive_int(config, "vocab_size"),
        context_length=positions,
        layers=(layer,) * positive_int(config, "num_hidden_layers"),
        norm=None,
        head=None,
        embedding=EmbeddingSpec(
            num_positions=positions, num_token_types=positive_int(config, "type_vocab_size", 2), norm=norm
        ),
        classifier=ClassifierSpec(label_count(config)) if is_classifier else None,
    )


def label_count(config: Config) -> int:
    """Labels of a classifier: those of id2label, else num_labels, else transformers' default of 2."""
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) and names else positive_int(config, "num_labels", 2)


FAMILY = Family(
    architectures=(CLASSIFIER, "BertModel"),
    model_types=("bert",),
    describe=describe,
    # The bare model is written without the first component: see stored.canonical_names.
    names={
        "embedding": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "token_types": "bert.embeddings.token_type_embeddings",
        "embedding_norm": "bert.embeddings.LayerNorm",
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
        **in_layers(
            "bert.encoder.layer.{layer}.",
            {
                "mixer.q": "attention.self.query",
                "mixer.k": "attention.self.key",
                "mixer.v": "attention.self.value",
                "mixer.o": "attention.output.dense",
                "mixer_norm": "attention.output.LayerNorm",
                "feed_forward.up": "intermediate.dense",
                "feed_forward.down": "output.dense",
                "feed_forward_norm": "output.LayerNorm",
            },
        ),
    },
    # One that only embeds computes neither its pooler nor stored position numbers.
    ignored=r"(bert\.)?embeddings\.(position_ids|token_type_ids)|(bert\.)?pooler\.dense\.(weight|bias)",
)
