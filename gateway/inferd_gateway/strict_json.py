"""JSON that can be written again as JSON in UTF-8."""

from __future__ import annotations

import json
import math
from typing import Any


class TooLarge(ValueError):
    """A number that only Infinity could stand for. path: where it is."""

    def __init__(self, number: str, path: str) -> None:
        super().__init__(f"the number {number[:32]} is too large")
        self.path = path


def loads(text: str, *, unique_keys: bool = False) -> Any:
    """RFC 8259 JSON: no NaN, no number beyond a double, no half of a surrogate pair.

    Raises ValueError, or RecursionError where it is nested too deeply. unique_keys: no key twice in an object.
    """
    infinite: list[str] = []

    def to_float(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            infinite.append(number)
        return value

    hook = unique if unique_keys else None
    parsed = json.loads(text, parse_constant=refuse_constant, parse_float=to_float, object_pairs_hook=hook)
    if infinite:
        raise TooLarge(infinite[0], path_of_infinity(parsed))
    if "\\u" in text:
        check_surrogates(parsed)
    return parsed


def refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def path_of_infinity(parsed: Any) -> str:
    """`tools[0].maximum`."""
    found = [("", parsed)]
    while found:
        path, value = found.pop()
        if isinstance(value, float) and math.isinf(value):
            return path
        if isinstance(value, dict):
            found += [(f"{path}.{name}" if path else name, each) for name, each in value.items()]
        elif isinstance(value, list):
            found += [(f"{path}[{index}]", each) for index, each in enumerate(value)]
    return ""  # one that a later value of the same key replaced


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def check_surrogates(parsed: Any) -> None:
    """Half of a surrogate pair cannot be sent on as UTF-8."""
    try:
        json.dumps(parsed, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a string holds half of a surrogate pair") from None
