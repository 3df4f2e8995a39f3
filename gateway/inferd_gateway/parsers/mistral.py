"""Mistral: `[TOOL_CALLS] [{"name": ..., "arguments": {...}}, ...]`, or `[TOOL_CALLS]name[ARGS]{...}` once per call."""

from __future__ import annotations

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import NAME, skip
from inferd_gateway.parsers.marks import Marks

OPEN, ARGS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
OPENING = Marks([OPEN])
BEFORE_ARGUMENTS = Marks(["{", OPEN])


class MistralParser(IncrementalParser):
    def __init__(self) -> None:
        super().__init__()
        self._in_list = False
        self._head: list[str] = []

    def _between(self) -> bool:
        before, mark = self._until(OPENING)
        self._say(before)
        if mark:
            self._step = self._opened
        return bool(mark)

    def _opened(self) -> bool:
        self._at = skip(self._text, self._at)
        if self._at < len(self._text):
            self._in_list = self._text[self._at] == "["
            self._at += self._in_list
            self._head.clear()
            self._step = self._element if self._in_list else self._name
        return True

    def _element(self) -> bool:
        self._at = skip(self._text, self._at, ",")
        if self._at < len(self._text):
            if self._text[self._at] == "{":
                self._start_call(OPEN + "[")
            else:
                self._at += self._text[self._at] == "]"
                self._step = self._between
        return True

    def _name(self) -> bool:
        before, mark = self._until(BEFORE_ARGUMENTS)
        self._head.append(before)
        if mark == "{":
            self._at -= 1
        if mark:
            head = "".join(self._head)
            name = head.removesuffix(ARGS).partition(CALL_ID)[0].strip()
            if mark == "{" and NAME.fullmatch(name):
                self._start_arguments(name)
            else:
                self._say(OPEN + head)
                self._head.clear()
                self._step = self._between if mark == "{" else self._opened
        return bool(mark)

    def _after_call(self) -> bool:
        self._step = self._element if self._in_list else self._between
        return True

    def _end(self, rest: str) -> None:
        if self._step == self._opened or self._step == self._name:
            rest = OPEN + "".join(self._head) + rest
        super()._end(rest)
