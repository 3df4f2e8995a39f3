"""Gemma: as Gemma 2, without what that generation added; its norms are named as Llama's."""

from __future__ import annotations

from inferd.models.families.gemma2 import describe
from inferd.models.family import Family

FAMILY = Family(
    architectures=("GemmaForCausalLM",),
    headless=("GemmaModel",),
    model_types=("gemma",),
    gguf=("gemma",),
    describe=describe,
)
