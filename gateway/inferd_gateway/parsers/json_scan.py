"""JSON that comes in parts: where a value ends, and the two keys of a call. Strings and brackets are followed; whether
the rest is valid JSON is left to whoever uses it, as with OpenAI's own models."""

from __future__ import annotations

import json
import re
from collections.abc import Container

from inferd_gateway.parsers.pieces import Arguments, CallStart, Piece

MAX_DEPTH = 64
STRING_STOP = re.compile(r'["\\]')
BRACKET = re.compile(r'["{}\[\]]')
SCALAR_STOP = re.compile(r"[,}\]\s]")
NOT_BLANK = re.compile(r"[^ \t\r\n]")
KINDS = {'"': "string", "{": "object", "[": "array"}
CLOSING = {"{": "}", "[": "]"}
NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
ARGUMENT_KEYS = ("arguments", "parameters")


class JsonValue:
    """Follows one value to its end. `kind`: string, object, array or scalar."""

    def __init__(self) -> None:
        self.kind = ""
        self.done = False
        self.broken = False
        self._open: list[str] = []  # brackets to be closed
        self._in_string = False
        self._escaped = False

    def take(self, text: str, at: int) -> int:
        """How far the value reaches in `text`, which goes on from where the last one ended."""
        while at < len(text) and not (self.done or self.broken):
            if not self.kind:
                self.kind = KINDS.get(text[at], "scalar")
            if self._escaped:
                self._escaped = False
                at += 1
            elif self._in_string:
                at = self._string(text, at)
            elif self.kind == "scalar":
                stop = SCALAR_STOP.search(text, at)
                self.done = stop is not None
                at = stop.start() if stop else len(text)
            else:
                at = self._structure(text, at)
        return at

    def _string(self, text: str, at: int) -> int:
        stop = STRING_STOP.search(text, at)
        if stop is None:
            return len(text)
        self._escaped = stop.group() == "\\"
        self._in_string = self._escaped
        self.done = not self._in_string and not self._open
        return stop.end()

    def _structure(self, text: str, at: int) -> int:
        stop = BRACKET.search(text, at)
        if stop is None:
            return len(text)
        sign = stop.group()
        if sign == '"':
            self._in_string = True
        elif sign in CLOSING:
            self._open.append(CLOSING[sign])
            self.broken = len(self._open) > MAX_DEPTH
        else:
            self.broken = not self._open or self._open.pop() != sign
            self.done = not self._open and not self.broken
        return stop.end()


class JsonCall:
    """One `{"name": ..., "arguments": {...}}`, its keys in any order.

    known: the names that make it a call, once there are arguments too; None: any name does.
    """

    def __init__(self, known: Container[str] | None = None) -> None:
        self.done = False
        self.broken = False
        self.started = False  # given out: it cannot be taken back
        self._known = known
        self._name: str | None = None
        self._has_arguments = False
        self._raw: list[str] = []
        self._arguments: list[str] = []
        self._token: list[str] = []
        self._key = ""
        self._value = JsonValue()
        self._step = self._open

    def take(self, text: str, at: int) -> int:
        """Where in `text` the call ends, or broke."""
        start = at
        while at < len(text) and not (self.done or self.broken):
            at = self._step(text, at)
        if not self.started:
            self._raw.append(text[start:at])
        return at

    def pieces(self) -> list[Piece]:
        found: list[Piece] = []
        certain = self._known is None or self._key in ARGUMENT_KEYS or self.done
        if self._name is not None and certain and not self.started:
            self.started = True
            self._raw.clear()
            found.append(CallStart(self._name))
        if self.started and self._arguments:
            found.append(Arguments("".join(self._arguments)))
            self._arguments.clear()
        return found

    def raw(self) -> str:
        """The text of a call that never started."""
        return "".join(self._raw)

    def _open(self, text: str, at: int) -> int:
        self.broken = text[at] != "{"
        self._step = self._before_key
        return at if self.broken else at + 1

    def _before_key(self, text: str, at: int) -> int:
        at = skip(text, at, ",")
        if at < len(text):
            if text[at] == "}":
                self._close()
                return at + 1
            self.broken = text[at] != '"'
            self._value, self._step = JsonValue(), self._in_key
        return at

    def _in_key(self, text: str, at: int) -> int:
        end = self._value.take(text, at)
        self._token.append(text[at:end])
        if self._value.done:
            self._key = str(self._decoded())
            self._step = self._before_value
        return end

    def _before_value(self, text: str, at: int) -> int:
        at = skip(text, at, ":")
        if at < len(text):
            self._value, self._step = JsonValue(), self._in_value
        return at

    def _in_value(self, text: str, at: int) -> int:
        end = self._value.take(text, at)
        streams = self._value.kind == "object" and self._key in ARGUMENT_KEYS
        (self._arguments if streams else self._token).append(text[at:end])
        self.broken = self._value.broken
        if self._value.done:
            self._step = self._before_key
            self._end_value(streams)
        return end

    def _end_value(self, streamed: bool) -> None:
        value = None if streamed else self._decoded()
        if self._key == "name":
            fits = isinstance(value, str) and (NAME.fullmatch(value) if self._known is None else value in self._known)
            self._name, self.broken = (str(value), False) if fits else (None, True)
        elif self._key in ARGUMENT_KEYS:
            self._has_arguments = True
            if isinstance(value, str) and value:
                self._arguments.append(value)  # JSON within a string
            elif not streamed:
                self._arguments.append(json.dumps(value, ensure_ascii=False) if value else "{}")

    def _close(self) -> None:
        self.done, self.broken = self._name is not None, self._name is None
        if self.done and not self._has_arguments:
            self._arguments.append("{}")

    def _decoded(self) -> object:
        text = "".join(self._token)
        self._token.clear()
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None


def skip(text: str, at: int, also: str = "") -> int:
    """The next place that holds neither a blank nor one of `also`."""
    while (found := NOT_BLANK.search(text, at)) is not None:
        if found.group() not in also:
            return found.start()
        at = found.end()
    return len(text)
