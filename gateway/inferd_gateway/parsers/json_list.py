"""`[{"name": ..., "parameters": {...}}, ...]` and nothing else: for models whose own form cannot be forced."""

from __future__ import annotations

from inferd_gateway.parsers.incremental import IncrementalParser
from inferd_gateway.parsers.json_scan import skip


class JsonListParser(IncrementalParser):
    def _between(self) -> bool:
        self._at = skip(self._text, self._at, "[,]")
        if self._at < len(self._text):
            if self._text[self._at] == "{":
                self._start_call("")
            else:
                self._step = self._plain
        return True

    def _plain(self) -> bool:
        self._say(self._text[self._at :])
        self._at = len(self._text)
        return True

    def _after_call(self) -> bool:
        self._step = self._between
        return True
