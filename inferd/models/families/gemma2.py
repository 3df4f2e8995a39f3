"""Gemma 2 and 3, text only, and what Gemma shares with them: scaled embeddings, norms that store the difference from 1,
GELU. Gemma 2: norms behind the blocks as well, soft caps, a window in every other layer. Gemma 3: norms of queries and
keys, a window in five of six layers, which rotate by a base of their own."""

from __future__ import annotations

import math
from dataclasses import replace

from inferd.blocks.attention import AttentionSpec, QkNormSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.rope import RopeSpec
from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import (
    Sizes,
    activation,
    context_length,
    head,
    layer_windows,
    maybe_float,
    positive_float,
    positive_int,
    rms_norm,
    rope_spec,
    sizes,
)
from inferd.models.names import HF_NAMES, in_layers
from inferd.models.spec import EmbeddingSpec, HeadSpec, ModelSpec

LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, whose scores are scaled otherwise
LOCAL_THETA = 10000.0


def describe(config: Config) -> ModelSpec:
    generation, size = generation_of(config), sizes({**config, "head_dim": config.get("head_dim") or 256})
    # llama.cpp stores the norms' weights with 1 added.
    norm = rms_norm(config, 0.0 if is_gguf(config) else 1.0)
    name = config.get("hidden_activation") or config.get("hidden_act")
    feed_forward = FeedForwardSpec(
        positive_int(config, "intermediate_size"),
        "gelu_tanh"
        if is_gguf(config) or name == "gelu"
        else activation({"hidden_act": name}, default="gelu_pytorch_tanh"),
    )
    attention = AttentionSpec(
        num_heads=size.heads,
        num_kv_heads=size.kv_heads,
        head_dim=size.head_dim,
        scale=score_scale(config, generation, size),
        softcap=softcap(config, "attn_logit_softcapping"),
        qk_norm=QkNormSpec(norm.eps, offset=norm.offset) if generation == "gemma3" else None,
    )
    after = norm if generation != "gemma" else None
    whole = rope_of(config, generation, size, is_local=False)
    windows = windows_of(config, generation, size)
    layers = tuple(
        LayerSpec(
            mixer=replace(attention, window=window, rope=rope_of(config, generation, size, window > 0)),
            feed_forward=feed_forward,
            mixer_norm=norm,
            feed_forward_norm=norm,
            mixer_post_norm=after,
            feed_forward_post_norm=after,
        )
        for window in windows
    )
    return ModelSpec(
        architecture={"gemma": "GemmaForCausalLM", "gemma2": "Gemma2ForCausalLM"}.get(generation, "Gemma3ForCausalLM"),
        hidden_size=size.hidden,
        vocab_size=positive_int(config, "vocab_size"),
        context_length=context_length(config, None if is_gguf(config) or generation == "gemma3" else whole.scaling),
        layers=layers,
        norm=norm,
        head=HeadSpec(head(config, default=True).is_tied, softcap=softcap(config, "final_logit_softcapping")),
        embedding=EmbeddingSpec(scale=math.sqrt(size.hidden)),
    )


def generation_of(config: Config) -> str:
    """gemma, gemma2 or gemma3."""
    name = config.get("gguf_architecture") or str((config.get("architectures") or [config.get("model_type")])[0])
    return next((each for each in ("gemma2", "gemma3") if name.lower().startswith(each)), "gemma")


def score_scale(config: Config, generation: str, size: Sizes) -> float:
    """A GGUF header does not state it: it follows from the size of the model, as in llama.cpp."""
    if generation == "gemma":
        return size.head_dim**-0.5
    if is_gguf(config):
        divisor = size.hidden / size.heads if size.layers == LARGEST[generation] else size.head_dim
        return float(divisor**-0.5)
    return float(positive_float(config, "query_pre_attn_scalar", 256.0) ** -0.5)


def softcap(config: Config, key: str) -> float:
    return maybe_float(config["gguf"] if is_gguf(config) else config, key)


def windows_of(config: Config, generation: str, size: Sizes) -> tuple[int, ...]:
    if generation == "gemma":
        return (0,) * size.layers
    window = positive_int(config, "sliding_window", 4096)
    if config.get("layer_types") is not None:
        return layer_windows(config, window)
    period = 2 if generation == "gemma2" else positive_int(config, "sliding_window_pattern", 6)
    return tuple(0 if (index + 1) % period == 0 else window for index in range(size.layers))


def rope_of(config: Config, generation: str, size: Sizes, is_local: bool) -> RopeSpec:
    """Gemma 3's layers with a window have a base of their own and no scaling."""
    if generation != "gemma3" or not is_local:
        return rope_spec(config, size.head_dim, "full_attention")
    if is_gguf(config):
        return RopeSpec(positive_float(config["gguf"], "rope.freq_base_swa", LOCAL_THETA), size.head_dim)
    if config.get("rope_parameters"):
        return rope_spec(config, size.head_dim, "sliding_attention")
    return RopeSpec(positive_float(config, "rope_local_base_freq", LOCAL_THETA), size.head_dim)


NORMS = in_layers(
    "model.layers.{layer}.",
    {
        "mixer_post_norm": "post_attention_layernorm",
        "feed_forward_norm": "pre_feedforward_layernorm",
        "feed_forward_post_norm": "post_feedforward_layernorm",
    },
)
FAMILY = Family(
    architectures=("Gemma2ForCausalLM", "Gemma3ForCausalLM"),
    headless=("Gemma2Model", "Gemma3TextModel"),
    model_types=("gemma2", "gemma3_text"),
    gguf=("gemma2", "gemma3"),
    describe=describe,
    names={**HF_NAMES, **NORMS},
)
