"""Where the library's arithmetic and its writing of strings end: what lies beyond, it would enforce only nearly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

# The library computes with doubles, and writes numbers without an exponent.
MAX_DIGITS = 15  # that any double holds
MAX_EXACT_INTEGER = 2**53
MAX_BOUND = 10**18  # of a range; the library's integers have 64 bits
MAX_EXPONENT = 300
MAX_SIZE = 2**31 - 1
NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
UPPER_SIZES = ("maxItems", "maxLength", "maxProperties")
SIZES = (*UPPER_SIZES, "minItems", "minLength", "minProperties", "minContains", "maxContains")
# Control characters without a short escape cannot be written (lark.JSON_OPTIONS); the library leaves them out.
UNWRITABLE = frozenset(map(chr, range(0x20))).union("\x7f") - frozenset("\b\f\n\r\t")
PATTERN_ITEM = re.compile(
    r"\\(?P<code>x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|[xuU]\{[0-9A-Fa-f]{1,8}\})|\\(?P<escape>.)"
    r"|\[(?P<negated>\^?)(?P<set>(?:[^\]\\]|\\.)+)\]|.",
    re.DOTALL,
)
NAMED = {"a": "\x07", "v": "\x0b"}


def inexact(key: str, value: Any) -> str | None:
    """Why a keyword would not be enforced as it is written; None: it is, or the library says itself what is wrong."""
    if key in NUMBERS and is_number(value):
        return inexact_bound(key, value)
    if key in SIZES and is_number(value) and value > MAX_SIZE:
        return f"{shortened(value)} is more than {MAX_SIZE}"
    if key in ("const", "enum"):
        return next(filter(None, map(inexact_value, leaves(value))), None)
    if key == "pattern" and isinstance(value, str):
        return unwritable_pattern(value)
    if key == "patternProperties" and isinstance(value, dict):
        return next(filter(None, map(unwritable_pattern, value)), None)
    return None


def inexact_bound(key: str, value: int | Decimal) -> str | None:
    if key == "multipleOf" and value <= 0:
        return f"must be more than 0, got {shortened(value)}"
    if not -MAX_BOUND <= value <= MAX_BOUND or not is_exact(value):
        return (
            f"{shortened(value)} cannot be enforced exactly, but numbers of {MAX_DIGITS} digits and integers up to "
            f"{MAX_EXACT_INTEGER} can"
        )
    return None


def inexact_value(value: Any) -> str | None:
    if is_number(value) and not is_exact(value):
        return (
            f"{shortened(value)} cannot be written exactly, but numbers of {MAX_DIGITS} digits and integers up to "
            f"{MAX_EXACT_INTEGER} can"
        )
    if isinstance(value, str):
        return next((cannot_write(character) for character in value if character in UNWRITABLE), None)
    return None


def is_number(value: Any) -> bool:
    return isinstance(value, int | Decimal) and not isinstance(value, bool)


def is_exact(value: int | Decimal) -> bool:
    """Whether a double holds the decimal number, and so does everything that the library makes of it."""
    number = Decimal(value)
    if not number:
        return True
    if abs(number.adjusted()) > MAX_EXPONENT:
        return False
    digits = "".join(map(str, number.as_tuple().digits)).strip("0")
    return len(digits) <= MAX_DIGITS or (abs(number) <= MAX_EXACT_INTEGER and number == int(number))


def whole(value: Any) -> Any:
    """5.0 is an integer, as JSON Schema has it."""
    is_whole = isinstance(value, Decimal) and value.adjusted() <= MAX_EXPONENT and value == int(value)
    return int(value) if is_whole else value


def leaves(value: Any) -> Iterator[Any]:
    """The values within a JSON value that are no lists or objects."""
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)
    else:
        yield value


def unwritable_pattern(pattern: str) -> str | None:
    """Why no string can match at some place. The library takes such a character out of the pattern instead. In a set
    with others it is just one that is not chosen."""
    for item in PATTERN_ITEM.finditer(pattern):
        members = set(characters_of(item["set"] or item.group()))
        if len(members) == 1 and members <= UNWRITABLE and not item["negated"]:
            return cannot_write(members.pop())
    return None


def characters_of(text: str) -> Iterator[str]:
    """Characters of a pattern's text, with the escapes of control characters resolved; others stand for themselves."""
    for item in PATTERN_ITEM.finditer(text):
        if item["code"]:
            code = int(item["code"].strip("xuU{}"), 16)
            yield chr(code) if code <= 0x10FFFF else "?"
        elif item["escape"]:
            yield NAMED.get(item["escape"], "?")
        else:
            yield from item.group()


def cannot_write(character: str) -> str:
    return f"U+{ord(character):04X} cannot be written: of the control characters, those with a short escape can"


def shortened(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:39]}…"
