"""Which checkpoint tensor goes where: rules as data, without torch. How they are read is loader's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from inferd.models.spec import DecoderSpec

# What a tensor-parallel rank takes of a tensor: a range of output rows, of input columns, or all of it.
Shard = Literal["rows", "columns", "whole"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The tensor `source` ({layer} stands for each layer index) is the next part of `target`.

    Rules of one target, in their order, are the parts fused along the output rows: q | k | v, gate | up.
    """

    source: str
    target: str
    shape: tuple[int, ...]
    shard: Shard = "whole"

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.source


def llama_rules(spec: DecoderSpec) -> tuple[Rule, ...]:
    """The parameter names that Llama, Mistral, Qwen2 and Qwen3 share, for the parts that `spec` has."""
    return (*_outer_rules(spec), *_attention_rules(spec), *_mlp_rules(spec))


def _outer_rules(spec: DecoderSpec) -> Iterator[Rule]:
    hidden = spec.hidden_size
    yield Rule("model.embed_tokens.weight", "embedding", (spec.vocab_size, hidden), "rows")
    yield Rule("model.norm.weight", "norm", (hidden,))
    if not spec.tied_embeddings:
        yield Rule("lm_head.weight", "lm_head", (spec.vocab_size, hidden), "rows")


def _attention_rules(spec: DecoderSpec) -> Iterator[Rule]:
    prefix, hidden = "model.layers.{layer}.", spec.hidden_size
    sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
    yield Rule(f"{prefix}input_layernorm.weight", "attention_norm", (hidden,))
    for part, size in sizes.items():
        yield Rule(f"{prefix}self_attn.{part}_proj.weight", "qkv", (size, hidden), "rows")
        if spec.qkv_bias:
            yield Rule(f"{prefix}self_attn.{part}_proj.bias", "qkv_bias", (size,), "rows")
    if spec.qk_norm:
        yield Rule(f"{prefix}self_attn.q_norm.weight", "q_norm", (spec.head_dim,))
        yield Rule(f"{prefix}self_attn.k_norm.weight", "k_norm", (spec.head_dim,))
    yield Rule(f"{prefix}self_attn.o_proj.weight", "o", (hidden, spec.q_size), "columns")
    if spec.o_bias:
        yield Rule(f"{prefix}self_attn.o_proj.bias", "o_bias", (hidden,))


def _mlp_rules(spec: DecoderSpec) -> Iterator[Rule]:
    prefix, hidden, inner = "model.layers.{layer}.", spec.hidden_size, spec.intermediate_size
    yield Rule(f"{prefix}post_attention_layernorm.weight", "mlp_norm", (hidden,))
    for part in ("gate", "up"):
        yield Rule(f"{prefix}mlp.{part}_proj.weight", "gate_up", (inner, hidden), "rows")
        if spec.mlp_bias:
            yield Rule(f"{prefix}mlp.{part}_proj.bias", "gate_up_bias", (inner,), "rows")
    yield Rule(f"{prefix}mlp.down_proj.weight", "down", (hidden, inner), "columns")
    if spec.mlp_bias:
        yield Rule(f"{prefix}mlp.down_proj.bias", "down_bias", (hidden,))
