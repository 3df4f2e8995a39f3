"""Family: what one file of inferd/models/families says of the checkpoints that it reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from inferd.models.names import GGUF_NAMES, HF_NAMES, Names
from inferd.models.spec import ModelSpec

Config: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Family:
    """Models that one function describes.

    architectures  Hugging Face's class names, of models with a head
    headless       those of the same models saved without their head, as embedding models are
    model_types    Hugging Face's model_type, for configurations that name no class
    gguf           llama.cpp's architecture names
    describe       config.json, or what a GGUF header gives in its form, to the description. Raises StartupError naming
                   the key of what is not supported.
    names, gguf_names   where the parameters are, in either kind of file
    ignored        a regular expression: tensors that some writers store beside the parameters and that are computed
                   here
    """

    architectures: tuple[str, ...]
    describe: Callable[[Config], ModelSpec]
    headless: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    names: Names = field(default_factory=lambda: HF_NAMES)
    gguf_names: Names = field(default_factory=lambda: GGUF_NAMES)
    ignored: str = r"(.*\.)?rotary_emb\.inv_freq"


def is_gguf(config: Config) -> bool:
    """Whether the configuration was read from a GGUF header, whose writer changes some weights (see the families)."""
    return "gguf_architecture" in config
