"""What is served: the facts of one checkpoint that requests are checked against and GetModelInfo tells."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeGuard

import msgspec

from inferd.checkpoint import open_checkpoint
from inferd.config import InferdConfig
from inferd.errors import ModelNotFound, StartupError
from inferd.models.pooling import GENERATES, Capabilities, capabilities
from inferd.models.registry import model_spec
from inferd.request import SamplingParams
from inferd.text.export import tokenizer_files
from inferd.text.parts import TokenizerParts
from inferd.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

# Keys of generation_config.json that are sampling defaults, with their bounds: (low, high).
DEFAULT_BOUNDS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "top_k": (0, 2**31 - 1),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.0, 10.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """names[0] is the name, the others are aliases. default_sampling holds the checkpoint's own wishes only."""

    names: tuple[str, ...]
    tokenizer: Tokenizer
    architecture: str
    revision: str
    created: int  # Unix seconds
    chat_templates: Mapping[str, str]
    default_sampling: Mapping[str, float]
    tokenizer_files: Callable[[], Mapping[str, bytes]]  # name -> content; slow, for a thread
    capabilities: Capabilities = GENERATES

    @property
    def name(self) -> str:
        return self.names[0]

    def check_name(self, name: str) -> None:
        """Raises ModelNotFound unless `name` is served; empty means the only model."""
        if name and name not in self.names:
            shown = name if len(name) <= 128 else name[:127] + "…"
            raise ModelNotFound(
                f"the model {shown!r} is not served here; served: {', '.join(self.names)}",
                field="model",
                metadata={"model": shown},
            )

    def sampling_defaults(self) -> SamplingParams:
        """The model's defaults over the engine's."""
        return msgspec.convert(self.default_sampling, SamplingParams, strict=False)


def served_names(config: InferdConfig) -> tuple[str, ...]:
    """The names given, else the source as the user typed it, without the folders before it when it is a path."""
    source = config.engine.model.source
    path = Path(source)
    default = path.resolve().name if path.exists() else source
    return config.server.served_model_names or (default,)


def default_sampling(generation_config: Mapping[str, object]) -> dict[str, float]:
    """The sampling defaults of a generation_config.json, without those that no request could ask for."""
    defaults: dict[str, float] = {}
    for key, (low, high) in DEFAULT_BOUNDS.items():
        value = generation_config.get(key)
        if value is None:
            continue
        if not is_within(value, low, high) or (value == 0 and key in ("top_p", "repetition_penalty")):
            logger.warning(
                "generation_config.json: %s is %.40r, not a number from %g to %g: ignored", key, value, low, high
            )
            continue
        defaults[key] = int(value) if key == "top_k" else float(value)
    return defaults


def is_within(value: object, low: float, high: float) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def configured_sampling(config: InferdConfig, generation_config: Mapping[str, object]) -> dict[str, float]:
    """default_sampling, or nothing when the checkpoint's wishes are not wanted."""
    return default_sampling(generation_config) if config.server.generation_config == "auto" else {}


def load_served_model(config: InferdConfig) -> ServedModel:
    """The served facts of the checkpoint at config's path. Loads the tokenizer. Raises StartupError."""
    checkpoint = open_checkpoint(Path(config.engine.model.path))
    template = config.server.chat_template
    templates = dict(checkpoint.chat_templates)
    if template is not None:
        templates["default"] = read_template(template)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    spec = model_spec(checkpoint.config)
    return ServedModel(
        names=served_names(config),
        tokenizer=tokenizer,
        tokenizer_files=partial(export_tokenizer, checkpoint.path, tokenizer.parts),
        architecture=spec.architecture,
        revision=config.engine.model.revision or checkpoint.fingerprint,
        created=int(time.time()),
        chat_templates=templates,
        capabilities=capabilities(checkpoint, spec, config.engine.model.pooling),
        default_sampling=configured_sampling(config, checkpoint.generation_config),
    )


def export_tokenizer(path: Path, parts: TokenizerParts) -> dict[str, bytes]:
    """tokenizer_files() of the checkpoint at `path`, read again: nothing of it but the parts is kept while it serves.
    Raises OSError or StartupError when it has gone."""
    source = open_checkpoint(path).tokenizer
    assert source is not None, "opened with its vocabulary"
    return tokenizer_files(source, parts)


def read_template(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"chat template {path}: {error}") from error
