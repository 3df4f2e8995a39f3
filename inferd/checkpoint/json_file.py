"""Reading JSON that nobody vouches for: bounded, strict about duplicate keys, one readable line when it is broken."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from inferd.checkpoint.pointer import refuse_pointer
from inferd.errors import StartupError

MAX_JSON_BYTES = 64 * 1024 * 1024


def parse_json(data: bytes, what: str) -> Any:
    """The JSON value in `data`. StartupError, starting with `what`, for anything else, duplicate keys included."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            raise StartupError(f"{what}: key {twice[:80]!r} appears twice")
        return result

    try:
        return json.loads(data, object_pairs_hook=unique)
    except RecursionError:
        raise StartupError(f"{what}: nested too deeply") from None
    except ValueError as error:
        raise StartupError(f"{what}: not valid JSON ({error})") from None


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`. StartupError, starting with `what`, for anything else."""
    value = parse_json(data, what)
    if not isinstance(value, dict):
        raise StartupError(f"{what}: expected a JSON object, found {type(value).__name__}")
    return value


def read_bounded(path: Path, limit: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file of at most `limit` bytes. StartupError when it is larger or cannot be read."""
    try:
        size = path.stat().st_size
        if size > limit:
            raise StartupError(f"{path}: {size} bytes, at most {limit} are read")
        data = path.read_bytes()
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror})") from None
    refuse_pointer(path, data)
    return data


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. StartupError when it is missing, too large or malformed."""
    return parse_json_object(read_bounded(path), str(path))


def read_json_list(path: Path) -> list[Any]:
    """The JSON list in a file. StartupError when it is missing, too large or malformed."""
    value = parse_json(read_bounded(path), str(path))
    if not isinstance(value, list):
        raise StartupError(f"{path}: expected a JSON list, found {type(value).__name__}")
    return value


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Like read_json_object; an absent file is an empty object."""
    return read_json_object(path) if path.is_file() else {}
