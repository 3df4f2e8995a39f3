"""Which checkpoint tensor goes where: rules as data, without torch. How they are read is loader's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from inferd.models.spec import DecoderSpec

# What a tensor-parallel rank takes of a tensor: its range of one dimension as output rows or as input columns, or all.
Split = Literal["whole", "q_rows", "kv_rows", "inner_rows", "vocab_rows", "q_columns", "inner_columns"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The tensor `source` ({layer} stands for each layer index) is the next part of `target`.

    Rules of one target, in their order, are the parts fused along the output rows: q | k | v, gate | up. shape is that
    of the part, [out, in] or [out]. A tensor may itself hold num_parts parts along its output rows, of which this is
    number `part`; transposed tells one that is stored [in, out].
    """

    source: str
    target: str
    shape: tuple[int, ...]
    split: Split = "whole"
    transposed: bool = False
    part: int = 0
    num_parts: int = 1

    @property
    def per_layer(self) -> bool:
        return "{layer}" in self.source

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the whole tensor, as the checkpoint has it."""
        shape = (self.shape[0] * self.num_parts, *self.shape[1:])
        return shape[::-1] if self.transposed else shape


def llama_rules(spec: DecoderSpec) -> tuple[Rule, ...]:
    """The parameter names that Llama, Mistral, Qwen2 and Qwen3 share, for the parts that `spec` has."""
    return (*_outer_rules(spec), *_attention_rules(spec), *_mlp_rules(spec))


def _outer_rules(spec: DecoderSpec) -> Iterator[Rule]:
    hidden = spec.hidden_size
    yield Rule("model.embed_tokens.weight", "embedding", (spec.vocab_size, hidden), "vocab_rows")
    yield Rule("model.norm.weight", "norm", (hidden,))
    if not spec.tied_embeddings:
        yield Rule("lm_head.weight", "lm_head", (spec.vocab_size, hidden), "vocab_rows")


def _attention_rules(spec: DecoderSpec) -> Iterator[Rule]:
    prefix, hidden = "model.layers.{layer}.", spec.hidden_size
    sizes: dict[str, tuple[int, Split]] = {
        "q": (spec.q_size, "q_rows"),
        "k": (spec.kv_size, "kv_rows"),
        "v": (spec.kv_size, "kv_rows"),
    }
    yield Rule(f"{prefix}input_layernorm.weight", "attention_norm", (hidden,))
    for part, (size, split) in sizes.items():
        yield Rule(f"{prefix}self_attn.{part}_proj.weight", "qkv", (size, hidden), split)
        if spec.qkv_bias:
            yield Rule(f"{prefix}self_attn.{part}_proj.bias", "qkv_bias", (size,), split)
    if spec.qk_norm:
        yield Rule(f"{prefix}self_attn.q_norm.weight", "q_norm", (spec.head_dim,))
        yield Rule(f"{prefix}self_attn.k_norm.weight", "k_norm", (spec.head_dim,))
    yield Rule(f"{prefix}self_attn.o_proj.weight", "o", (hidden, spec.q_size), "q_columns")
    if spec.o_bias:
        yield Rule(f"{prefix}self_attn.o_proj.bias", "o_bias", (hidden,))


def _mlp_rules(spec: DecoderSpec) -> Iterator[Rule]:
    prefix, hidden, inner = "model.layers.{layer}.", spec.hidden_size, spec.intermediate_size
    yield Rule(f"{prefix}post_attention_layernorm.weight", "mlp_norm", (hidden,))
    for part in ("gate", "up"):
        yield Rule(f"{prefix}mlp.{part}_proj.weight", "gate_up", (inner, hidden), "inner_rows")
        if spec.mlp_bias:
            yield Rule(f"{prefix}mlp.{part}_proj.bias", "gate_up_bias", (inner,), "inner_rows")
    yield Rule(f"{prefix}mlp.down_proj.weight", "down", (hidden, inner), "inner_columns")
    if spec.mlp_bias:
        yield Rule(f"{prefix}mlp.down_proj.bias", "down_bias", (hidden,))
