"""Phi-3, Phi-3.5 and Phi-4: Llama with q | k | v and gate | up stored as one matrix each, rotary embedding of a part
of each head, and LongRoPE."""

from __future__ import annotations

from inferd.models.family import Config, Family
from inferd.models.hf_config import layer_windows, llama_like
from inferd.models.names import GGUF_NAMES, HF_NAMES, Stored, in_layers
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    return llama_like(config, "Phi3ForCausalLM", windows=layer_windows(config, config.get("sliding_window")))


def fused(prefix: str, qkv: str, gate_up: str) -> dict[str, str | Stored]:
    q_k_v, both = Stored(qkv, fused=("q", "k", "v")), Stored(gate_up, fused=("gate", "up"))
    parts = {"mixer.q": q_k_v, "mixer.k": q_k_v, "mixer.v": q_k_v, "feed_forward.gate": both, "feed_forward.up": both}
    return in_layers(prefix, parts)


FAMILY = Family(
    architectures=("Phi3ForCausalLM",),
    headless=("Phi3Model",),
    model_types=("phi3",),
    gguf=("phi3",),
    describe=describe,
    names={**HF_NAMES, **fused("model.layers.{layer}.", "self_attn.qkv_proj", "mlp.gate_up_proj")},
    gguf_names={**GGUF_NAMES, **fused("blk.{layer}.", "attn_qkv", "ffn_up")},
)
