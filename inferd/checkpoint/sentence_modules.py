"""A sentence-transformers folder: modules.json and what it points to, read as data. No code named there is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from inferd.checkpoint.json_file import read_json_list, read_json_object, read_optional_json_object
from inferd.errors import StartupError

Pooling = Literal["mean", "cls", "last"]
# Spellings of the pooling module's configuration: one switch per mode, or (newer) the mode's name.
MODES: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "mean": "mean",
    "cls": "cls",
    "lasttoken": "last",
}


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """How a sentence-transformers model makes its vectors.

    max_tokens: longest input, special tokens included; None: the model's own limit. prompts: name -> text that the
    model wants before an input, such as query or document.
    """

    pooling: Pooling
    normalize: bool
    max_tokens: int | None = None
    prompts: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def read_sentence_modules(folder: Path) -> SentenceModules | None:
    """What the folder's modules.json says; None when there is none. StartupError for a module that is not built."""
    path = folder / "modules.json"
    if not path.is_file():
        return None
    pooling: Pooling | None = None
    normalize = False
    for entry in read_json_list(path):
        kind = str(entry.get("type", "")).rpartition(".")[2] if isinstance(entry, dict) else ""
        if kind == "Pooling":
            pooling = read_pooling(module_folder(folder, entry))
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise StartupError(
                f"{path}: module {kind or entry!r} is not supported (Transformer, Pooling, Normalize are)"
            )
    if pooling is None:
        raise StartupError(f"{path}: no Pooling module")
    settings = read_optional_json_object(folder / "sentence_bert_config.json")
    prompts = read_optional_json_object(folder / "config_sentence_transformers.json").get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise StartupError(f"{folder / 'config_sentence_transformers.json'}: prompts is no object of strings")
    return SentenceModules(pooling, normalize, max_tokens(settings, folder), MappingProxyType(prompts))


def module_folder(folder: Path, entry: dict[str, Any]) -> Path:
    """The folder of one module, which must lie inside the model's."""
    inside = (folder / str(entry.get("path", ""))).resolve()
    if not inside.is_relative_to(folder.resolve()):
        raise StartupError(f"{folder / 'modules.json'}: path {entry.get('path')!r} leads out of the folder")
    return inside


def read_pooling(folder: Path) -> Pooling:
    """The one pooling mode that is switched on."""
    path = folder / "config.json"
    config = read_json_object(path)
    stated = config.get("pooling_mode")
    names = [stated] if isinstance(stated, str) else [key for key in config if config[key] is True and "mode" in key]
    if len(names) != 1 or names[0] not in MODES:
        raise StartupError(
            f"{path}: pooling {' + '.join(names) or 'none'} is not supported (mean, cls, last token are)"
        )
    if config.get("include_prompt") is False:
        raise StartupError(f"{path}: include_prompt false is not supported")
    return MODES[names[0]]


def max_tokens(settings: dict[str, Any], folder: Path) -> int | None:
    value = settings.get("max_seq_length")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise StartupError(
            f"{folder / 'sentence_bert_config.json'}: max_seq_length is {value!r}, not a positive integer"
        )
    return value
