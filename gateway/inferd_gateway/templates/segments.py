"""Which parts of a rendered prompt must not be read as control tokens, for the caller wrote them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from inferd_gateway.templates.text import spans_of

Trie: TypeAlias = "dict[str, Trie]"
_NO_MATCH = re.compile(r"(?!)")


class ControlTokens:
    """The texts of a model's control tokens. A character of the caller's that is part of one, or of several at once,
    becomes an untrusted run: no trusted run then holds a control token of which anything is the caller's."""

    def __init__(self, texts: Iterable[str]) -> None:
        tokens = {text for text in texts if text.strip()}
        self._pattern = re.compile(longest_of(tokens)) if tokens else _NO_MATCH
        self._longest = max(map(len, tokens), default=0)

    def runs(self, text: str) -> list[tuple[str, bool]]:
        """(text, trusted); the texts together are the prompt."""
        plain = str.__str__(text)
        found, done = [], 0
        for start, end in self._forged(text, plain):
            found += [(plain[done:start], True), (plain[start:end], False)]
            done = end
        found.append((plain[done:], True))
        return [(run, trusted) for run, trusted in found if run]

    def _forged(self, text: str, plain: str) -> list[tuple[int, int]]:
        """Ascending ranges of the caller's text that are part of control tokens, with neighbours joined."""
        found: list[tuple[int, int]] = []
        for span in spans_of(text):
            for start, end in self._tokens_at(plain, span.start, span.end):
                start, end = max(start, span.start), min(end, span.end)
                if found and start <= found[-1][1]:
                    found[-1] = found[-1][0], max(end, found[-1][1])
                else:
                    found.append((start, end))
        return found

    def _tokens_at(self, plain: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The tokens that reach into plain[start:end]. At one place the longest covers the others."""
        position, last = max(0, start - self._longest + 1), end + self._longest - 1
        while match := self._pattern.search(plain, position, last):
            position = match.start() + 1
            if start < match.end() and match.start() < end:
                yield match.span()


def longest_of(texts: Iterable[str]) -> str:
    """A regular expression for the longest of `texts` at a place, whose cost does not grow with their number."""
    root: Trie = {}
    for text in texts:
        node = root
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return _alternatives(root)


def _alternatives(node: Trie) -> str:
    branches = [re.escape(char) + _alternatives(child) for char, child in node.items() if char]
    if not branches:
        return ""
    only = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return only + "?" * ("" in node)
