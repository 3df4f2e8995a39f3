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
from inferd_gateway.parsers.value_types import json_of, kinds_of, property_of

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, PARAMETER = "<function=", "<parameter="
END_FUNCTION, END_PARAMETER = "</function>", "</parameter>"
OPENING = Marks([OPEN, FUNCTION, CLOSE])
FUNCTIONS = Marks([FUNCTION, CLOSE])
NAME_END = Marks([">"])
PARAMETERS = Marks([PARAMETER, END_FUNCTION, CLOSE])
VALUE_END = Marks([END_PARAMETER, PARAMETER, END_FUNCTION])


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
        value = self._value_of(text)
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

    def _value_of(self, text: str) -> str:
        """The JSON text of a value."""
        root = self._schemas.get(self._function, {})
        return json_of(text, kinds_of(property_of(self._parameter, root, root), root))

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
