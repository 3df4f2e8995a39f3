"""From config.json to a model family, and whether a checkpoint has what that family needs. Loads no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Any

from inferd.checkpoint import Checkpoint
from inferd.checkpoint.records import same_content
from inferd.errors import StartupError
from inferd.models import families
from inferd.models.family import Config, Family, is_gguf
from inferd.models.names import Names, find_name
from inferd.models.spec import ModelSpec
from inferd.models.stored import LAYER, canonical_names, stored_tensors

logger = logging.getLogger(__name__)


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
    if quantized := config.get("quantization_config"):
        method = quantized.get("quant_method", "unnamed") if isinstance(quantized, Mapping) else quantized
        raise StartupError(
            f"config.json: quantization_config: weights quantized by {str(method)[:40]!r} are not supported"
            " (a folder of float weights or a GGUF file is)"
        )
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
    spec = with_stored_head(model_spec(checkpoint.config), checkpoint)
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
        _check_layer_count(checkpoint, spec, unknown)
        raise StartupError(
            f"{checkpoint.path}: {spec.architecture} has no tensor {sorted(unknown)[0]}{_and_more(unknown)}"
        )
    return spec


def with_stored_head(spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """The spec with a head of its own where the configuration ties it to the embedding, and the file holds another.

    So transformers does it. Such a file holds what was trained; that it says "tied" is a left-over."""
    if spec.head is None or not spec.head.is_tied:
        return spec
    names = names_of(checkpoint)
    head, embedding = (find_name(names, f"{part}.weight").name for part in ("head", "embedding"))
    tensors = canonical_names(checkpoint.tensors, [embedding])
    if head not in tensors or embedding not in tensors or same_content(tensors[head], tensors[embedding]):
        return spec
    logger.warning("%s: tie_word_embeddings is ignored, for %s differs from %s", checkpoint.path, head, embedding)
    return replace(spec, head=replace(spec.head, is_tied=False))


def _check_layer_count(checkpoint: Checkpoint, spec: ModelSpec, unknown: list[str]) -> None:
    """StartupError when the tensors left over are those of further layers."""
    sources = (entry if isinstance(entry, str) else entry.name for entry in names_of(checkpoint).values())
    prefixes = {source.partition(LAYER)[0] for source in sources if LAYER in source}
    found = [re.match(re.escape(prefix) + r"(\d+)\.", name) for name in unknown for prefix in prefixes]
    further = [int(match[1]) for match in found if match is not None and int(match[1]) >= spec.num_layers]
    if further:
        raise StartupError(
            f"{checkpoint.path}: the weights have layers up to number {max(further)},"
            f" num_hidden_layers is {spec.num_layers}"
        )


def _is_ignored(name: str, spec: ModelSpec, ignored: re.Pattern[str]) -> bool:
    """Whether a tensor that no parameter asks for may be there."""
    needs_no_head = not spec.is_encoder and (spec.head is None or spec.head.is_tied)
    return ignored.fullmatch(name) is not None or (needs_no_head and name == "lm_head.weight")


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
