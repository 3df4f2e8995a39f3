"""Mistral 7B and its kin: Llama with a sliding window on every layer where the config states one."""

from __future__ import annotations

from inferd.models.hf_config import Config, layer_windows, llama_like, positive_int
from inferd.models.spec import DecoderSpec
from inferd.models.weights import llama_rules

ARCHITECTURE = "MistralForCausalLM"
weight_rules = llama_rules


def spec_from_hf(config: Config) -> DecoderSpec:
    # A config without the key means 4096, one with null no window: so transformers reads them.
    stated = config.get("sliding_window", 4096)
    window = None if stated is None else positive_int({"sliding_window": stated}, "sliding_window")
    # transformers has no layer_types for Mistral: the window is the same everywhere.
    return llama_like(config, ARCHITECTURE, windows=layer_windows({**config, "layer_types": None}, window))
