"""Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter>...</function></tool_call>`.

A value is text; the tool's schema says whether it means a number, a list and so on. Arguments come one at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import NAME
from inferd_gateway.parsers.marks import Marks
from inferd_gateway.parsers.pieces import Arguments, CallStart

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
END_FUNCTION, END_PARAMETER = "</function>", "</parameter>"
OPENING = Marks([OPEN, FUNCTION, CLOSE])
FUNCTIONS = Marks([FUNCTION, CLOSE])
NAME_END = Marks([">"])
PARAMETERS = Marks([PARAMETER, END_FUNCTION, CLOSE])
VALUE_END = Marks([END_PARAMETER, PARAMETER, END_FUNCTION])
NO_TEXT = ("integer", "number", "boolean", "object", "array", "null")


class Qwen3XmlParser(IncrementalParser):
    """schemas: the parameters of each tool by its name."""

    def __init__(self, schemas: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__()
        self._schemas = schemas
        self._held: list[str] = []  # of the name or value at hand
        self._function = ""
        self._parameter = ""
        self._count = 0

    def _between(self) -> bool:
        before, mark = self._until(OPENING)
        self._say(before)
        if mark == CLOSE:
            self._say("" if self._called else CLOSE)
        elif mark:
            self._step = self._opened if mark == OPEN else self._function_name
        return bool(mark)

    def _opened(self) -> bool:
        _, mark = self._until(FUNCTIONS)
        if mark:
            self._step = self._function_name if mark == FUNCTION else self._between
        return bool(mark)

    def _function_name(self) -> bool:
        name = self._word()
        if name is None:
            return False
        if NAME.fullmatch(name):
            self._blank.clear()
            self._called, self._function, self._count = True, name, 0
            self._out.append(CallStart(name))
            self._step = self._in_function
        else:
            self._say(f"{FUNCTION}{name}>")
            self._step = self._between
        return True

    def _in_function(self) -> bool:
        _, mark = self._until(PARAMETERS)
        if mark:
            self._step = self._parameter_name if mark == PARAMETER else self._between
            if mark != PARAMETER:
                self._close()
        return bool(mark)

    def _parameter_name(self) -> bool:
        name = self._word()
        if name is not None:
            self._parameter, self._step = name, self._in_value
        return name is not None

    def _in_value(self) -> bool:
        before, mark = self._until(VALUE_END)
        self._held.append(before)
        if not mark:
            return False
        text = "".join(self._held).removeprefix("\n").removesuffix("\n")
        self._held.clear()
        key = json.dumps(self._parameter, ensure_ascii=False)
        value = json.dumps(self._value_of(text), ensure_ascii=False)
        self._out.append(Arguments(f"{', ' if self._count else '{'}{key}: {value}"))
        self._count += 1
        self._at -= 0 if mark == END_PARAMETER else len(mark)
        self._step = self._in_function
        return True

    def _word(self) -> str | None:
        """The name up to `>`; None when it is not there yet."""
        before, mark = self._until(NAME_END)
        self._held.append(before)
        if not mark:
            return None
        word = "".join(self._held).strip().strip("\"'")
        self._held.clear()
        return word

    def _value_of(self, text: str) -> Any:
        properties = self._schemas.get(self._function, {}).get("properties")
        schema = properties.get(self._parameter) if isinstance(properties, dict) else None
        kinds = kinds_of(schema) if isinstance(schema, dict) else ()
        if "string" in kinds or not any(kind in NO_TEXT for kind in kinds):
            return text
        try:
            return json.loads(text, parse_constant=str)
        except (ValueError, RecursionError):
            words = {"true": True, "false": False, "none": None, "null": None}
            return words.get(text.strip().lower(), text)

    def _close(self) -> None:
        self._out.append(Arguments("}" if self._count else "{}"))

    def _end(self, rest: str) -> None:
        if self._step == self._opened:
            rest = OPEN + rest
        elif self._step == self._function_name:
            rest = FUNCTION + "".join(self._held) + rest
        elif self._step != self._between:
            rest = ""
        self._say(rest)


def kinds_of(schema: Mapping[str, Any]) -> tuple[str, ...]:
    """The JSON types that a schema names."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return (kind,)
    if isinstance(kind, list):
        return tuple(str(one) for one in kind)
    options = schema.get("anyOf") or schema.get("oneOf") or ()
    return tuple(one for option in options if isinstance(option, dict) for one in kinds_of(option))
