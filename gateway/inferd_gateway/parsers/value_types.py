"""Values that a model writes as plain text: a tool's schema says which JSON value is meant."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

TYPES = frozenset({"string", "integer", "number", "boolean", "object", "array", "null"})
MAX_DEPTH = 16  # of references and combinations; beyond, every type may be meant
NUMBERS = frozenset({"integer", "number"})
WORDS = {"true": "true", "false": "false", "none": "null", "null": "null"}  # as Python writes them, too
NAMES: dict[type, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null", list: "array", dict: "object",
}  # fmt: skip


def json_of(text: str, kinds: frozenset[str]) -> str:
    """JSON text of a value that may be of these types. JSON stays as it is written, digit by digit; what is none is a
    string. Where a string may be meant, the text is one, unless it is JSON of another of the types and no number."""
    stripped = text.strip()
    kind = json_kind(stripped)
    if "string" in kinds:
        return stripped if kind in kinds - NUMBERS - {"string"} else json.dumps(text, ensure_ascii=False)
    if kind is not None:
        return stripped
    return WORDS.get(stripped.lower()) or json.dumps(text, ensure_ascii=False)


def json_kind(text: str) -> str | None:
    """The type of a JSON text; None when it is none. Digits are not made into a number: there may be thousands."""
    try:
        value = json.loads(text, parse_int=lambda _: 0, parse_float=lambda _: 0.0, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    return NAMES[type(value)]


def refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def kinds_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> frozenset[str]:
    """The JSON types that a schema lets through; a schema that says nothing means a string, for the text is one. root:
    what references start from."""
    found = allowed(schema, root, depth)
    return frozenset({"string"}) if found == TYPES else found


def allowed(schema: Any, root: Mapping[str, Any], depth: int) -> frozenset[str]:
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return TYPES
    found = TYPES
    kind = schema.get("type")
    if isinstance(kind, str | list):
        found &= frozenset([kind] if isinstance(kind, str) else [one for one in kind if isinstance(one, str)])
    if "const" in schema:
        found &= kinds_of_values([schema["const"]])
    if isinstance(schema.get("enum"), list):
        found &= kinds_of_values(schema["enum"])
    if isinstance(schema.get("$ref"), str):
        found &= allowed(resolved(schema["$ref"], root), root, depth + 1)
    for each in schema["allOf"] if isinstance(schema.get("allOf"), list) else ():
        found &= allowed(each, root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            found &= frozenset().union(*(allowed(each, root, depth + 1) for each in schema[key]))
    return found


def property_of(name: str, schema: Any, root: Mapping[str, Any], depth: int = 0) -> Any:
    """The schema of an object's property, found through references and combinations too."""
    if not isinstance(schema, dict) or depth > MAX_DEPTH:
        return None
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    parts = [resolved(schema["$ref"], root)] if isinstance(schema.get("$ref"), str) else []
    for key in ("allOf", "anyOf", "oneOf"):
        parts += schema[key] if isinstance(schema.get(key), list) else []
    found = (property_of(name, part, root, depth + 1) for part in parts)
    return next((each for each in found if each is not None), None)


def kinds_of_values(values: list[Any]) -> frozenset[str]:
    return frozenset(NAMES[type(value)] for value in values)


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What a JSON pointer within the document means; None when there is nothing."""
    if not reference.startswith("#"):
        return None
    value: Any = root
    for name in filter(None, unquote(reference[1:]).split("/")):
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return None
    return value
