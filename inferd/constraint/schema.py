"""JSON Schemas before they are compiled: what the library would take and not enforce is refused or left out here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote

from inferd.constraint.exactness import MAX_SIZE, SIZES, UPPER_SIZES, inexact, is_number, shortened, whole
from inferd.errors import InvalidConstraint

MAX_DEPTH = 64
STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
MAX_INTEGER_DIGITS = 400  # beyond, an integer is kept as a Decimal: making an int of it takes time
# Any of them may come next, at every place where a property may: with 158 the masks of a vocabulary of 49,152 tokens
# reach MAX_STEP_ITEMS (matcher.py). A property that is required costs nothing of the kind.
MAX_OPTIONAL_PROPERTIES = 128
ALTERNATIVES = ("allOf", "anyOf", "oneOf")
MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
SINGLES = (
    *("items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "contains"),
    *("propertyNames", "not", "if", "then", "else"),
)
# Formats that are enforced. Any other one is an annotation, as JSON Schema has it.
FORMATS = {
    *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"),
}


def parse_json(text: str) -> Any:
    """Fractions come as Decimal, and nothing is rounded. Raises InvalidConstraint for anything that is no JSON; NaN,
    infinities and halves of surrogate pairs are none."""
    try:
        value = json.loads(text, parse_int=exact, parse_float=exact, parse_constant=refuse_constant)
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except RecursionError:
        raise InvalidConstraint("the JSON is nested too deeply") from None
    except UnicodeEncodeError as error:
        found = ord(error.object[error.start])
        raise InvalidConstraint(f"not valid JSON: U+{found:04X} alone is no character") from None
    except ValueError as error:
        raise InvalidConstraint(f"not valid JSON: {error}") from None
    return value


def exact(text: str) -> int | Decimal:
    """The number that the text says. Raises ValueError for an exponent of more digits than anybody means."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"the exponent of {shortened(text)} is too large") from None
    is_plain = text.lstrip("-").isdigit() and number.adjusted() < MAX_INTEGER_DIGITS
    return int(text) if is_plain else number


def refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def checked_schema(schema: Any, lenient: bool) -> dict[str, Any] | bool:
    """The schema without annotations that the library takes for rules. Raises InvalidConstraint."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise InvalidConstraint(f"a schema is an object or a boolean, not a {type(schema).__name__}")
    checked: dict[str, Any] = check_node(schema, lenient, 0)
    return checked


def check_node(schema: Any, lenient: bool, depth: int) -> Any:
    if not isinstance(schema, dict):
        return schema
    if depth > MAX_DEPTH:
        raise InvalidConstraint(f"the schema is nested more than {MAX_DEPTH} deep")
    node = enforceable(schema, lenient)
    check_keywords(node, lenient)
    optional = optional_properties(node)
    if optional > MAX_OPTIONAL_PROPERTIES:
        raise InvalidConstraint(
            f"an object has {optional} properties that are not required, at most {MAX_OPTIONAL_PROPERTIES} are "
            "supported; there is no limit for required ones"
        )

    def below(value: Any) -> Any:
        return check_node(value, lenient, depth + 1)

    return {key: check_value(key, value, below) for key, value in node.items()}


def enforceable(schema: dict[str, Any], lenient: bool) -> dict[str, Any]:
    """The keywords that count. Raises InvalidConstraint for one that the library would enforce only nearly; where that
    is wanted leniently, it is left out."""
    node = {}
    for key, given in schema.items():
        if key == "format" and given not in FORMATS:
            continue
        value = whole(given) if key in SIZES else given
        if key in UPPER_SIZES and is_number(value) and value > MAX_SIZE:
            continue  # no text is as long
        problem = inexact(key, value)
        if problem is None:
            node[key] = value
        elif not lenient:
            raise InvalidConstraint(f"{key}: {problem}")
    return node


def optional_properties(schema: Any) -> int:
    """Properties that may or may not come, of an object and of what it is combined from."""
    if not isinstance(schema, dict):
        return 0
    names, required = schema.get("properties"), schema.get("required")
    count = 0
    if isinstance(names, dict):
        stated = required if isinstance(required, list) else []
        count = len(set(names) - {name for name in stated if isinstance(name, str)})
    branches = (branch for key in ALTERNATIVES if isinstance(schema.get(key), list) for branch in schema[key])
    return count + sum(map(optional_properties, branches))


def check_value(key: str, value: Any, below: Callable[[Any], Any]) -> Any:
    if key == "$ref":
        return as_uri(value)
    if key in MAPS and isinstance(value, dict):
        return {name: below(each) for name, each in value.items()}
    if (key in LISTS or key in SINGLES) and isinstance(value, list):
        return [below(each) for each in value]
    return below(value) if key in SINGLES else as_floats(value)


def as_floats(value: Any) -> Any:
    """The value for the library, which reads doubles. What is left of larger numbers stands in annotations."""
    if isinstance(value, Decimal):
        number = float(value)
        return number if math.isfinite(number) else None
    if isinstance(value, list):
        return [as_floats(each) for each in value]
    if isinstance(value, dict):
        return {key: as_floats(each) for key, each in value.items()}
    return value


def as_uri(reference: str) -> str:
    """The reference with percent-encoding where URIs need it. Generators of schemas write names as they are."""
    return "#" + quote(STRAY_PERCENT.sub("%25", reference[1:]), safe="/~%!$&'()*+,;=:@?")


def check_keywords(schema: dict[str, Any], lenient: bool) -> None:
    """Refuse what would be taken for something else than it means."""
    reference = schema.get("$ref", "#")
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise InvalidConstraint(f"$ref {str(reference)[:100]!r}: only references within the schema are followed")
    for key in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(key), bool):
            raise InvalidConstraint(f"{key} is a number in JSON Schema since draft 6, got a boolean")
    # A repeated key counts once when the text is parsed, and twice when it is written.
    least, required = schema.get("minProperties", 0), schema.get("required", [])
    if not lenient and isinstance(least, int) and isinstance(required, list) and least > max(len(set(required)), 1):
        raise InvalidConstraint("minProperties above 1 and above the number of required properties is not enforced")
