"""The answer is a call and nothing else: `{"name": ..., "parameters": {...}}`, more of them after `;` (Llama 3.1-3.3).

Only an object that names one of the tools is a call, since any other JSON may be the answer.
"""

from __future__ import annotations

from collections.abc import Container

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import skip
from inferd_gateway.parsers.marks import Marks

TAG = "<|python_tag|>"
TAGS = Marks([TAG])


class Llama3JsonParser(IncrementalParser):
    def __init__(self, names: Container[str]) -> None:
        super().__init__()
        self._names = names
        self._step = self._begin

    def _begin(self) -> bool:
        """The first character that is no blank decides, or the tag."""
        start = skip(self._text, self._at)
        self._say(self._text[self._at : start])
        self._at = start
        if start < len(self._text):
            if self._text[start] == "{":
                self._start_call("", self._names)
            else:
                self._step = self._between
        return True

    def _between(self) -> bool:
        before, mark = self._until(TAGS)
        self._say(before)
        if mark:
            self._step = self._begin
        return bool(mark)

    def _after_call(self) -> bool:
        start = skip(self._text, self._at, ";,")
        if start < len(self._text):
            if self._text[start] == "{":
                self._at = start
                self._start_call("", self._names)
            else:
                self._step = self._between
            return True
        self._at = start
        return False
