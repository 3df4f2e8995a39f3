"""Qwen2 and Qwen2.5: biases on q, k, v; an optional sliding window from layer max_window_layers on."""

from __future__ import annotations

from inferd.models.hf_config import Config, layer_windows, llama_like, positive_int
from inferd.models.spec import DecoderSpec
from inferd.models.weights import llama_rules

ARCHITECTURE = "Qwen2ForCausalLM"
weight_rules = llama_rules


def spec_from_hf(config: Config) -> DecoderSpec:
    return llama_like(config, ARCHITECTURE, windows=qwen_windows(config), qkv_bias=True)


def qwen_windows(config: Config) -> tuple[int, ...]:
    """sliding_window counts only under use_sliding_window; layers before max_window_layers look at everything."""
    window = positive_int(config, "sliding_window", 4096) if config.get("use_sliding_window", False) else None
    # 0 is a valid value here: every layer slides.
    first = config.get("max_window_layers")
    return layer_windows(config, window, 28 if first is None else int(first))
