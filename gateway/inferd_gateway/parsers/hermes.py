"""`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: Hermes, Qwen 2.5 and 3, and many others."""

from __future__ import annotations

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import skip
from inferd_gateway.parsers.marks import Marks

OPEN, CLOSE = "<tool_call>", "</tool_call>"
OPENING = Marks([OPEN])
CLOSING = Marks([OPEN, CLOSE])


class HermesParser(IncrementalParser):
    def _between(self) -> bool:
        before, mark = self._until(OPENING)
        self._say(before)
        if mark:
            self._step = self._opened
        return bool(mark)

    def _opened(self) -> bool:
        self._at = skip(self._text, self._at)
        if self._at < len(self._text):
            self._start_call(OPEN)
        return True

    def _after_call(self) -> bool:
        _, mark = self._until(CLOSING)
        if mark:
            self._step = self._opened if mark == OPEN else self._between
        return bool(mark)

    def _end(self, rest: str) -> None:
        super()._end("" if self._step == self._after_call else OPEN if self._step == self._opened else rest)
