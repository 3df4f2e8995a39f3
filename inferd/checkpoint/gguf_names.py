"""GGUF tensor names -> Hugging Face parameter names, for llama-like models."""

from __future__ import annotations

import re

TOP_LEVEL = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
LAYER_NAME = re.compile(r"blk\.(\d{1,5})\.([a-z0-9_]+)\.(weight|bias)")
ROTATED = ("attn_q", "attn_k")


def hf_name(name: str) -> str:
    """The Hugging Face name; a name nobody knows stays as it is, for the model's own check to refuse."""
    match = LAYER_NAME.fullmatch(name)
    if match and match[2] in IN_LAYER:
        return f"model.layers.{int(match[1])}.{IN_LAYER[match[2]]}.{match[3]}"
    return TOP_LEVEL.get(name, name)


def is_rotated(name: str) -> bool:
    """Whether the tensor's rows are query or key channels."""
    match = LAYER_NAME.fullmatch(name)
    return match is not None and match[2] in ROTATED
