"""Literals that are looked for in text that comes in parts."""

from __future__ import annotations

import re
from collections.abc import Iterable


class Marks:
    """Finds the first of some literals, none of which begins another one."""

    def __init__(self, literals: Iterable[str]) -> None:
        known = sorted(set(literals), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, known)) if known else r"(?!)")
        self._starts = {literal[:size] for literal in known for size in range(1, len(literal))}
        self._longest = max(map(len, self._starts), default=0)

    def find(self, text: str, at: int) -> tuple[int, int]:
        """(start, end) of the first mark from `at` on. None found: both are where a mark may still begin."""
        match = self._pattern.search(text, at)
        if match is not None:
            return match.span()
        longest = min(self._longest, len(text) - at)
        held = next((size for size in range(longest, 0, -1) if text[len(text) - size :] in self._starts), 0)
        return len(text) - held, len(text) - held


class Remover:
    """Takes all marks out of a text."""

    def __init__(self, literals: Iterable[str]) -> None:
        self._marks = Marks(literals)
        self._held = ""

    def push(self, text: str) -> str:
        text, at, parts = self._held + text, 0, []
        while True:
            start, end = self._marks.find(text, at)
            parts.append(text[at:start])
            if start == end:
                self._held = text[start:]
                return "".join(parts)
            at = end

    def finish(self) -> str:
        return self._held
