"""From config.json to a model family, and whether a checkpoint has what that family needs. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from inferd.checkpoint import Checkpoint, GgufVocabulary
from inferd.errors import StartupError
from inferd.models import families
from inferd.models.family import Config, Family, is_gguf
from inferd.models.names import Names
from inferd.models.spec import ModelSpec
from inferd.models.stored import canonical_names, stored_tensors


@cache
def all_families() -> tuple[Family, ...]:
    """The FAMILY of every file of inferd/models/families, in the order of the files' names."""
    names = sorted(module.name for module in iter_modules(families.__path__))
    return tuple(import_module(f"{families.__name__}.{name}").FAMILY for name in names)


@cache
def architectures() -> Mapping[str, Family]:
    """Every class name of Hugging Face that is supported -> its family."""
    return MappingProxyType(
        {name: family for family in all_families() for name in (*family.architectures, *family.headless)}
    )


def find_family(config: Config) -> tuple[Family, str]:
    """The family of a configuration, and the class name that it states or stands for. StartupError lists what is
    supported."""
    if is_gguf(config):
        return _gguf_family(str(config["gguf_architecture"]))
    stated = list(config.get("architectures") or [])
    known = architectures()
    for name in stated:
        if name in known:
            return known[name], name
    if not stated:
        for family in all_families():
            if config.get("model_type") in family.model_types:
                return family, family.architectures[-1]
    given = ", ".join(map(str, stated)) or config.get("model_type") or "none named"
    raise StartupError(f"architecture {given} is not supported; supported: {', '.join(sorted(known))}")


def _gguf_family(name: str) -> tuple[Family, str]:
    known = {each: family for family in all_families() for each in family.gguf}
    if name not in known:
        raise StartupError(f"GGUF architecture {name[:40]!r} is not supported (supported: {', '.join(sorted(known))})")
    return known[name], known[name].architectures[0]


def model_spec(config: Config) -> ModelSpec:
    """The model that a configuration describes. Raises StartupError."""
    family, architecture = find_family(config)
    spec = family.describe(config)
    return spec.without_head(architecture) if architecture in family.headless else spec


def decoder_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Raises StartupError for what is no decoder that is supported."""
    spec = model_spec(config)
    if spec.is_encoder:
        raise StartupError(f"architecture {spec.architecture} is an encoder; a decoder was expected")
    return spec


def names_of(checkpoint: Checkpoint) -> Names:
    family, _ = find_family(checkpoint.config)
    return family.gguf_names if is_gguf(checkpoint.config) else family.names


def check_checkpoint(checkpoint: Checkpoint) -> ModelSpec:
    """The spec, once every tensor is known to be there in its shape and nothing that would change results is left over.

    Raises StartupError naming the first missing, misshapen or unknown tensors.
    """
    spec = model_spec(checkpoint.config)
    expected = stored_tensors(spec, names_of(checkpoint))
    tensors = canonical_names(checkpoint.tensors, expected)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise StartupError(f"{checkpoint.path}: tensor {missing[0]} is missing{_and_more(missing)}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise StartupError(f"{checkpoint.path}: tensor {name} has shape {tensors[name].shape}, expected {shape}")
    ignored = re.compile(find_family(checkpoint.config)[0].ignored)
    unknown = [name for name in tensors if name not in expected and not _is_ignored(name, spec, ignored)]
    if unknown:
        raise StartupError(
            f"{checkpoint.path}: {spec.architecture} has no tensor {sorted(unknown)[0]}{_and_more(unknown)}"
        )
    _check_tokenizer(checkpoint, spec)
    return spec


def _is_ignored(name: str, spec: ModelSpec, ignored: re.Pattern[str]) -> bool:
    """Whether a tensor that no parameter asks for may be there."""
    needs_no_head = not spec.is_encoder and (spec.head is None or spec.head.is_tied)
    return ignored.fullmatch(name) is not None or (needs_no_head and name == "lm_head.weight")


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _check_tokenizer(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """A token id of the tokenizer must be a row of the embedding. tokenizer.json is checked by who parses it."""
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, GgufVocabulary) and len(tokenizer.tokens) > spec.vocab_size:
        raise StartupError(
            f"{checkpoint.path}: the tokenizer has {len(tokenizer.tokens)} tokens, the embedding {spec.vocab_size} rows"
        )
