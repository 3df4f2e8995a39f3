"""Where a checkpoint keeps the parameters of a model: names as data, one table per family and file format.

A table maps parts of a model to tensor names, without the ending `.weight` or `.bias`; {layer} stands for the index of
a layer and {expert} for that of an expert. Parts are named as in ModelSpec's and the blocks' parameters: `embedding`,
`mixer.q`, `feed_forward.down`, `mixer_norm`. An entry with an ending is the whole name of that one tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that holds more or other than one parameter as the blocks declare it.

    fused           the parts of the same block that it holds, one after the other along its rows
    is_interleaved  they take turns instead, row by row
    is_transposed   it is stored [in, out]
    is_stacked      one tensor holds the parameter of all experts, [experts, out, in]
    """

    name: str
    fused: tuple[str, ...] = ()
    is_interleaved: bool = False
    is_transposed: bool = False
    is_stacked: bool = False


Names: TypeAlias = Mapping[str, str | Stored]


def find_name(names: Names, parameter: str) -> Stored:
    """Where `parameter` ("mixer.q.weight") is stored. Raises KeyError for one that the table lacks."""
    if parameter in names and "." in parameter:
        return _stored(names[parameter])
    module, _, ending = parameter.rpartition(".")
    stored = _stored(names[module])
    return replace(stored, name=f"{stored.name}.{ending}")


def _stored(entry: str | Stored) -> Stored:
    return entry if isinstance(entry, Stored) else Stored(entry)


def in_layers(prefix: str, names: Names) -> dict[str, str | Stored]:
    """`names` below `prefix`, which has a {layer}."""
    return {
        part: prefix + entry if isinstance(entry, str) else replace(entry, name=prefix + entry.name)
        for part, entry in names.items()
    }


# The names that most families of Hugging Face share.
HF_NAMES: Names = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    **in_layers(
        "model.layers.{layer}.",
        {
            "mixer_norm": "input_layernorm",
            "mixer.q": "self_attn.q_proj",
            "mixer.k": "self_attn.k_proj",
            "mixer.v": "self_attn.v_proj",
            "mixer.o": "self_attn.o_proj",
            "mixer.q_norm": "self_attn.q_norm",
            "mixer.k_norm": "self_attn.k_norm",
            "mixer.sinks": "self_attn.sinks",
            "feed_forward_norm": "post_attention_layernorm",
            "feed_forward.gate": "mlp.gate_proj",
            "feed_forward.up": "mlp.up_proj",
            "feed_forward.down": "mlp.down_proj",
            "feed_forward.router": "mlp.gate",
            "feed_forward.experts.gate": "mlp.experts.{expert}.gate_proj",
            "feed_forward.experts.up": "mlp.experts.{expert}.up_proj",
            "feed_forward.experts.down": "mlp.experts.{expert}.down_proj",
        },
    ),
}

# llama.cpp names the same block alike in every architecture.
GGUF_NAMES: Names = {
    "embedding": "token_embd",
    "norm": "output_norm",
    "head": "output",
    **in_layers(
        "blk.{layer}.",
        {
            "mixer_norm": "attn_norm",
            "mixer.q": "attn_q",
            "mixer.k": "attn_k",
            "mixer.v": "attn_v",
            "mixer.o": "attn_output",
            "mixer.q_norm": "attn_q_norm",
            "mixer.k_norm": "attn_k_norm",
            "mixer.sinks": "attn_sinks.weight",
            "mixer_post_norm": "post_attention_norm",
            "feed_forward_norm": "ffn_norm",
            "feed_forward.gate": "ffn_gate",
            "feed_forward.up": "ffn_up",
            "feed_forward.down": "ffn_down",
            "feed_forward.router": "ffn_gate_inp",
            "feed_forward.shared_gate": "ffn_gate_inp_shexp",
            "feed_forward.experts.gate": Stored("ffn_gate_exps", is_stacked=True),
            "feed_forward.experts.up": Stored("ffn_up_exps", is_stacked=True),
            "feed_forward.experts.down": Stored("ffn_down_exps", is_stacked=True),
            "feed_forward.shared.gate": "ffn_gate_shexp",
            "feed_forward.shared.up": "ffn_up_shexp",
            "feed_forward.shared.down": "ffn_down_shexp",
            "feed_forward_post_norm": "post_ffw_norm",
        },
    ),
}
