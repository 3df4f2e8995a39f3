"""Stop strings in streamed text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopMatch(NamedTuple):
    """text may be sent now; matched is the stop string that ended it, after which nothing more is to be pushed."""

    text: str
    matched: str | None = None


class StopMatcher:
    """Finds the first stop string to be complete, however the text is cut; of several ending there, the longest.

    Text that may yet turn out to be part of a stop string is held back. Linear: each character costs O(1) amortized per
    stop string (Knuth, Morris and Pratt, 1977).
    """

    def __init__(self, strings: Sequence[str], include_stop: bool = False) -> None:
        """strings: none empty. include_stop: the matched string is part of the text."""
        assert all(strings), "an empty stop string matches everywhere"
        self._strings = sorted(set(strings), key=len, reverse=True)
        self._borders = [border_lengths(string) for string in self._strings]
        self._lengths = [0] * len(self._strings)  # how much of each string the text ends with
        self._include_stop = include_stop
        self._held = ""

    def push(self, text: str) -> StopMatch:
        """The text that can be sent now, and the match if there is one."""
        if not self._strings:
            return StopMatch(text)
        buffer = self._held + text
        for index, character in enumerate(text, start=len(self._held) + 1):
            matched = self._advance(character)
            if matched is not None:
                self._held = ""
                end = index if self._include_stop else index - len(matched)
                return StopMatch(buffer[:end], matched)
        sent = len(buffer) - max(self._lengths)
        self._held = buffer[sent:]
        return StopMatch(buffer[:sent])

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> str | None:
        """Take one character; the longest stop string that it completes."""
        lengths = self._lengths
        for which, string in enumerate(self._strings):
            length, borders = lengths[which], self._borders[which]
            while length and string[length] != character:
                length = borders[length - 1]
            if string[length] == character:
                length += 1
            if length == len(string):
                return string
            lengths[which] = length
        return None


def border_lengths(string: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(string)
    length = 0
    for index in range(1, len(string)):
        while length and string[index] != string[length]:
            length = borders[length - 1]
        if string[index] == string[length]:
            length += 1
        borders[index] = length
    return borders
