"""A Hugging Face checkpoint folder: config.json, safetensors, tokenizer and chat template files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from inferd.checkpoint.fingerprint import fingerprint
from inferd.checkpoint.json_file import read_bounded, read_json_object, read_optional_json_object
from inferd.checkpoint.records import Checkpoint, TokenizerFiles
from inferd.checkpoint.safetensors_file import read_folder_tensors
from inferd.checkpoint.sentence_modules import read_sentence_modules
from inferd.errors import StartupError

MAX_TEMPLATE_BYTES = 1024 * 1024

logger = logging.getLogger(__name__)


def open_folder(folder: Path) -> Checkpoint:
    """Read every header of the folder. StartupError with one line when something is missing or corrupt."""
    if not (folder / "config.json").is_file():
        raise StartupError(f"{folder}: no config.json")
    config = read_json_object(folder / "config.json")
    tokenizer = read_tokenizer_files(folder)
    if config.get("auto_map") or tokenizer.tokenizer_config.get("auto_map"):
        logger.warning("%s: auto_map names code, which is ignored: checkpoint code is never executed", folder)
    tensors = read_folder_tensors(folder)
    return Checkpoint(
        path=folder,
        format="safetensors",
        config=config,
        generation_config=read_optional_json_object(folder / "generation_config.json"),
        tokenizer=tokenizer,
        chat_templates=read_chat_templates(folder, tokenizer.tokenizer_config),
        tensors=tensors,
        fingerprint=fingerprint(config, tensors),
        sentence=read_sentence_modules(folder),
    )


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """The tokenizer of a folder; its absence is the reader's business, a folder may hold weights only."""
    path = folder / "tokenizer.json"
    return TokenizerFiles(
        tokenizer_json=path if path.is_file() else None,
        tokenizer_config=read_optional_json_object(folder / "tokenizer_config.json"),
        special_tokens_map=read_optional_json_object(folder / "special_tokens_map.json"),
    )


def read_template_file(path: Path) -> str:
    try:
        return read_bounded(path, MAX_TEMPLATE_BYTES).decode("utf-8")
    except UnicodeDecodeError:
        raise StartupError(f"{path}: not UTF-8") from None


def named_templates(value: Any, where: str) -> dict[str, str]:
    """Templates as JSON files hold them: one string, or a list of {name, template}."""
    if isinstance(value, str):
        return {"default": value}
    templates: dict[str, str] = {}
    for entry in value if isinstance(value, list) else [value]:
        name, template = (entry.get("name"), entry.get("template")) if isinstance(entry, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(template, str):
            raise StartupError(f"{where}: chat_template is neither a string nor a list of named templates")
        templates[name] = template
    return templates


def read_chat_templates(folder: Path, tokenizer_config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, "default" first; files of their own win over tokenizer_config.json."""
    templates: dict[str, str] = {}
    if tokenizer_config.get("chat_template") is not None:
        templates |= named_templates(tokenizer_config["chat_template"], str(folder / "tokenizer_config.json"))
    in_json = folder / "chat_template.json"
    if in_json.is_file():
        templates |= named_templates(read_json_object(in_json).get("chat_template"), str(in_json))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = read_template_file(path)
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = read_template_file(folder / "chat_template.jinja")
    return dict(sorted(templates.items(), key=lambda item: item[0] != "default"))
