"""What the user typed, wherever: command line, file, environment -> one value per flag, checked against its type."""

from __future__ import annotations

import difflib
import json
import os
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import msgspec

from inferd.cli.flags import Flag
from inferd.cli.vllm import NOT_SUPPORTED

ENV_PREFIX = "INFERD_"
DECIMAL = {"k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
BINARY = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
PLAIN_TYPES = (("`int", "an integer"), ("`float", "a number"), ("`bool", "true or false"), ("`str", "text"), ("`", ""))
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtKMGT]?)(i?[bB]?|)")

Raw: typing.TypeAlias = str | bool | list[str]


class UsageError(Exception):
    """The command was not understood; one line that names the flag. Exit status 2."""


@dataclass(frozen=True, slots=True)
class Given:
    """A value as typed, and where: `--port`, `file.yaml: port`, `INFERD_PORT`."""

    raw: Raw
    where: str


def parse_size(text: str) -> int:
    """`32k` = 32,000, `32K` = 32,768, `4GiB` = 4 * 2**30, `4GB` = 4 * 10**9. Raises ValueError."""
    match = SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("expected a number with an optional k, K, MiB, GB, ...")
    number, prefix, unit = match.groups()
    scale = 1
    if prefix:
        decimal = unit in ("b", "B") or (not unit and prefix in DECIMAL)
        scale = DECIMAL[prefix.lower()] if decimal else BINARY[prefix.upper()]
    value = Decimal(number) * scale
    if value != int(value):
        raise ValueError("not a whole number")
    return int(value)


def convert(flag: Flag, given: Given) -> object:
    """The typed value of a flag. Raises UsageError naming where it was typed, the bound and the value."""
    raw: object = given.raw
    try:
        if isinstance(raw, str):
            raw = flag.synonyms.get(raw, raw)
        if isinstance(raw, str) and flag.size:
            raw = parse_size(raw)
        if isinstance(raw, str) and flag.is_object:
            raw = _decode_json(raw, flag)
        if isinstance(raw, bool) and not flag.is_switch:
            raise ValueError("expected a value")
        return msgspec.convert(raw, flag.value_type, strict=not isinstance(raw, str))
    except (ValueError, msgspec.ValidationError) as error:
        message = f"expected one of {', '.join(flag.choices)}" if flag.choices else _plain(str(error))
        raise UsageError(f"{given.where}: {message}; got {_shown(flag, given.raw)}") from None


def _decode_json(text: str, flag: Flag) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        raise ValueError(f"expected {', '.join(flag.synonyms)} or JSON") from None


def _plain(message: str) -> str:
    """msgspec's words for people: Expected `int` >= 1 -> expected an integer >= 1."""
    for name, words in PLAIN_TYPES:
        message = message.replace(name, words)
    message = message.partition(", got ")[0].removesuffix(" | null")
    return message[:1].lower() + message[1:]


def _shown(flag: Flag, raw: Raw) -> str:
    return "a secret" if flag.secret else json.dumps(raw)


def from_file(path: str, flags: Sequence[Flag], no_effect: Iterable[str]) -> tuple[dict[str, Given], list[str]]:
    """Values of a YAML file (keys: long flags, dashes or underscores) and the names in it that have no effect."""
    import yaml  # 20 ms of every start, for those who have a file

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a number or date that Python cannot hold
        raise UsageError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}, []
    if not isinstance(content, dict):
        raise UsageError(f"--config {path}: expected a mapping of flags, got {type(content).__name__}")
    names, ignored = spellings(flags), []
    values: dict[str, Given] = {}
    for key, value in content.items():
        name = str(key).replace("_", "-")
        if name in no_effect:
            ignored.append(name)
            continue
        if name == "config" or name not in names:
            if name in NOT_SUPPORTED:
                raise UsageError(f"{path}: {key!r} is not supported: {NOT_SUPPORTED[name]}")
            raise UsageError(f"{path}: unknown key {key!r}{nearest(name, names)}")
        flag = names[name]
        if flag.name in values:
            raise UsageError(f"{path}: {key!r} is given twice")
        if value is not None:
            values[flag.name] = Given(_raw(value, flag), f"{path}: {key}")
    return values, ignored


def _raw(value: object, flag: Flag) -> Raw:
    if isinstance(value, list):
        return [_text(item) for item in value] if flag.is_list else json.dumps(value)
    if flag.is_list:
        return [_text(value)]
    return value if isinstance(value, bool) else _text(value)


def _text(value: object) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)


def from_environment(environment: Mapping[str, str], flags: Sequence[Flag]) -> dict[str, Given]:
    """Values of INFERD_<FLAG>, upper case with underscores; lists are separated by commas."""
    values: dict[str, Given] = {}
    for flag in flags:
        name = ENV_PREFIX + flag.name.upper().replace("-", "_")
        text = environment.get(name)
        if not text:
            continue
        if text.startswith("tcp://"):
            continue  # Kubernetes injects INFERD_PORT=tcp://... for a Service named inferd: that is no value
        values[flag.name] = Given(text.split(",") if flag.is_list else text, name)
    return values


def merge(
    arguments: dict[str, Given], flags: Sequence[Flag], no_effect: Iterable[str]
) -> tuple[dict[str, Given], list[str]]:
    """Command line over file over environment; beside it the no-effect names found in the file."""
    environment = from_environment(os.environ, flags)
    config = arguments.get("config", environment.get("config"))
    in_file, ignored = from_file(str(config.raw), flags, no_effect) if config else ({}, [])
    return {**environment, **in_file, **arguments}, ignored


def spellings(flags: Iterable[Flag]) -> dict[str, Flag]:
    """Every long name, without dashes -> its flag; a switch also as no-NAME on the command line only."""
    return {
        name: flag
        for flag in flags
        for name in (flag.name, *(alias[2:] for alias in flag.aliases if alias.startswith("--")))
    }


def nearest(name: str, names: Iterable[str]) -> str:
    """`, did you mean X?` or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""
