"""Qwen2 and Qwen2.5: biases on q, k, v; an optional sliding window from layer max_window_layers on."""

from __future__ import annotations

from dataclasses import replace

from inferd.models.family import Config, Family, is_gguf
from inferd.models.hf_config import layer_windows, llama_like, positive_int
from inferd.models.spec import ModelSpec


def describe(config: Config) -> ModelSpec:
    return llama_like(
        config,
        "Qwen2ForCausalLM",
        windows=qwen_windows(config),
        mixer=lambda spec: replace(spec, qkv_bias=True),
    )


def qwen_windows(config: Config) -> tuple[int, ...]:
    """sliding_window counts only under use_sliding_window; layers before max_window_layers look at everything. In a
    GGUF file a window is stated for all layers."""
    if is_gguf(config):
        return layer_windows(config, config.get("sliding_window"))
    window = positive_int(config, "sliding_window", 4096) if config.get("use_sliding_window", False) else None
    # 0 is a valid value here: every layer slides.
    first = config.get("max_window_layers")
    return layer_windows(config, window, 28 if first is None else int(first))


FAMILY = Family(
    architectures=("Qwen2ForCausalLM",),
    headless=("Qwen2Model",),
    model_types=("qwen2",),
    gguf=("qwen2",),
    describe=describe,
)
