"""Pieces of grammars in the library's dialect of Lark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import regex_to_lark

# Forced text could be drawn token by token in the tokenizer's own way; for that the library would have to call the
# tokenizer in every step. It allows every token that continues the text instead.
HEADER = '%llguidance {"no_forcing": true}\n'
JSON_TEXT = "%json "  # in a grammar: what follows is a JSON Schema
COMMENT = "// "
ANY_TEXT = r"/(.|\n)*/"

# JSON as models write it: at most a blank or two, or one line break and its indentation (five levels of four, or ten of
# two). Without a bound a model may write white space until its tokens are used up. Without \u an escaped key cannot
# pass for another one: the control characters that have no short escape are not written.
JSON_OPTIONS: dict[str, Any] = {
    "whitespace_pattern": r"[ \t]{1,2}|\r?\n[ \t]{0,20}",
    "json_allowed_escapes": '"\\bfnrt',
    "coerce_one_of": False,
    "lenient": False,
}


def json_options(lenient: bool) -> dict[str, Any]:
    return {**JSON_OPTIONS, "lenient": lenient, "coerce_one_of": lenient}


def literal(text: str, special_texts: Sequence[tuple[str, int]]) -> str:
    """An expression that matches exactly `text`; control tokens in it are matched by their ids."""
    parts: list[str] = []
    plain = start = 0
    while start < len(text):
        found = next(((name, token) for name, token in special_texts if text.startswith(name, start)), None)
        if found is None:
            start += 1
            continue
        name, token = found
        parts += [quote(text[plain:start])] if start > plain else []
        parts.append(f"<[{token}]>")
        plain = start = start + len(name)
    parts += [quote(text[plain:])] if plain < len(text) or not parts else []
    return " ".join(parts)


def quote(text: str) -> str:
    """A string of the dialect: JSON's, with everything unprintable escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def regex(pattern: str) -> str:
    """An expression that matches what the pattern matches, in the syntax of Rust's regex crate; \\d is ASCII."""
    return f"/{regex_to_lark(pattern, 'd')}/"


def json_text(schema: dict[str, Any] | bool, lenient: bool = False) -> str:
    """An expression that matches JSON of the schema. The options are ours, whatever options the schema came with."""
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return JSON_TEXT + json.dumps({**schema, "x-guidance": json_options(lenient)})
