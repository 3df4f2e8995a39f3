"""Calls written as a list of Python calls: `[name(key="value", n=1), other()]` (Llama 3.2 and 4, OLMo).

The answer is a call only when it begins with `[` and the name of a tool. Values are literals, read by ast.literal_eval
within a bound of length; arguments come one at a time.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Container

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import skip
from inferd_gateway.parsers.marks import Marks
from inferd_gateway.parsers.pieces import Arguments, CallStart

MAX_VALUE = 256 * 1024
NAME_STOP = Marks(["("])
MAX_NAME = 128
STOP = re.compile(r"[\"'()\[\]{},\\]")
CLOSING = {"(": ")", "[": "]", "{": "}"}
KEY = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*=", re.ASCII)
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
ESCAPES = frozenset("\\'\"abfnrtvxuUN01234567\n")
JSON_WORDS = {"true": True, "false": False, "null": None}


class PythonicParser(IncrementalParser):
    def __init__(self, names: Container[str]) -> None:
        super().__init__()
        self._names = names
        self._step = self._begin
        self._held: list[str] = []  # of the name or argument at hand
        self._held_size = 0
        self._open: list[str] = []
        self._quote = ""
        self._escaped = False
        self._count = 0

    def _begin(self) -> bool:
        start = skip(self._text, self._at)
        self._say(self._text[self._at : start])
        self._at = start
        if start < len(self._text):
            is_list = self._text[start] == "["
            self._at += is_list
            self._hold("[" if is_list else "")
            self._step = self._name if is_list else self._plain
        return True

    def _between(self) -> bool:
        return self._plain()

    def _plain(self) -> bool:
        self._say(self._text[self._at :])
        self._at = len(self._text)
        return True

    def _name(self) -> bool:
        """Up to the parenthesis; no call if it is none of the tools."""
        before, mark = self._until(NAME_STOP)
        self._hold(before)
        text = "".join(self._held)
        name = text.lstrip("[, \t\r\n")
        if not mark and len(text) <= MAX_NAME:
            return True
        self._held.clear()
        self._held_size = 0
        if mark and name.strip() in self._names:
            self._blank.clear()
            self._called, self._count = True, 0
            self._out.append(CallStart(name.strip()))
            self._step = self._argument
        else:
            self._say("" if self._called else text + mark)
            self._step = self._skipped if self._called else self._plain
        return True

    def _argument(self) -> bool:
        """Up to a comma or the closing parenthesis outside of strings and brackets."""
        at = self._at
        while at < len(self._text):
            at, ended = self._scan(at)
            if ended:
                self._hold(self._text[self._at : at - 1])
                self._at = at
                self._end_argument(ended)
                return True
        self._hold(self._text[self._at :])
        self._at = at
        return True

    def _scan(self, at: int) -> tuple[int, str]:
        """(the next place, the character that ends the argument)."""
        if self._escaped:
            self._escaped = False
            return at + 1, ""
        found = STOP.search(self._text, at)
        if found is None:
            return len(self._text), ""
        sign, at = found.group(), found.end()
        if sign == "\\":
            self._escaped = bool(self._quote)
        elif self._quote:
            self._quote = "" if sign == self._quote else self._quote
        elif sign in "\"'":
            self._quote = sign
        elif sign in CLOSING:
            self._open.append(CLOSING[sign])
        elif self._open:
            if sign == self._open[-1]:
                self._open.pop()
        elif sign in ",)":
            return at, sign
        return at, ""

    def _end_argument(self, sign: str) -> None:
        text = "".join(self._held)
        self._held.clear()
        self._held_size = 0
        pair = argument(text)
        if pair is not None:
            self._out.append(Arguments(f"{', ' if self._count else '{'}{pair}"))
            self._count += 1
        if sign == ")":
            self._out.append(Arguments("}" if self._count else "{}"))
            self._step = self._after_call

    def _after_call(self) -> bool:
        start = skip(self._text, self._at, ",")
        self._at = start
        if start < len(self._text):
            if self._text[start] == "]":
                self._at += 1
                self._step = self._plain
            else:
                self._step = self._name
        return True

    def _skipped(self) -> bool:
        """A list that went on with something that is no call."""
        self._at = len(self._text)
        return True

    def _hold(self, text: str) -> None:
        """Beyond the bound only the size counts: such a value is not read."""
        if self._held_size <= MAX_VALUE:
            self._held.append(text)
        self._held_size += len(text)

    def _end(self, rest: str) -> None:
        if self._step == self._name and not self._called:
            rest = "".join(self._held) + rest
        elif self._step != self._plain:
            rest = ""
        self._say(rest)


def argument(text: str) -> str | None:
    """`key=value` as a member of a JSON object; None for what is no such thing. A value that is no literal is text."""
    key = KEY.match(text)
    if key is None or len(text) > MAX_VALUE:
        return None
    source = text[key.end() :].strip()
    try:
        value = json.dumps(literal(source), ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        value = json.dumps(source, ensure_ascii=False)
    return f"{json.dumps(key[1])}: {value}"


def literal(source: str) -> object:
    """Raises what ast.literal_eval raises. Python warns of escapes that it does not know: they stand for themselves."""
    if source in JSON_WORDS:
        return JSON_WORDS[source]
    return ast.literal_eval(ESCAPE.sub(lambda found: found[0] if found[1] in ESCAPES else "\\" + found[0], source))
