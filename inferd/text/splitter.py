"""Cuts text at added tokens, with trust: control tokens are recognized in trusted stretches only.

The tokenizers library splits on added tokens everywhere or nowhere, so it is given the text between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from inferd.text.parts import AddedToken

Trie: TypeAlias = "dict[str, Trie]"
END = ""


class Piece(NamedTuple):
    """text[start:end]: an added token (token_id), or text for the model (None)."""

    start: int
    end: int
    token_id: int | None


def longest_match_pattern(strings: Iterable[str]) -> str:
    """A regular expression for the longest of `strings` at a position, whose cost does not grow with their number."""
    root: Trie = {}
    for string in strings:
        node = root
        for character in string:
            node = node.setdefault(character, {})
        node[END] = {}

    def render(node: Trie) -> str:
        literal = ""
        while len(node) == 1 and END not in node:
            ((character, node),) = node.items()
            literal += re.escape(character)
        branches = [re.escape(character) + render(child) for character, child in node.items() if character != END]
        if not branches:
            return literal
        return f"{literal}(?:{'|'.join(branches)})" + ("?" if END in node else "")

    return render(root)


def compile_strings(strings: list[str]) -> re.Pattern[str] | None:
    return re.compile(longest_match_pattern(strings)) if strings else None


def is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


class AddedTokenSplitter:
    """Leftmost longest match of added tokens, in time linear in the text."""

    def __init__(self, added: tuple[AddedToken, ...]) -> None:
        self._by_text = {token.text: token for token in added if token.text}
        self._any = compile_strings(list(self._by_text))
        self._plain = compile_strings([text for text, token in self._by_text.items() if not token.special])

    def split(self, text: str, trusted: list[tuple[int, int]]) -> list[Piece]:
        """Pieces that cover `text` in order. trusted: ascending ranges whose control tokens are honoured."""
        pieces: list[Piece] = []
        done = position = run = 0
        pattern = self._any if trusted else self._plain
        while pattern and (match := pattern.search(text, position)):
            start, token = match.start(), self._by_text[match[0]]
            while run < len(trusted) and trusted[run][1] <= start:
                run += 1
            if token.special and not (
                run < len(trusted) and trusted[run][0] <= start and match.end() <= trusted[run][1]
            ):
                inner = self._plain.match(text, start) if self._plain else None
                if inner is None:
                    position = start + 1
                    continue
                token = self._by_text[inner[0]]
            end = start + len(token.text)
            position = end
            if token.single_word and touches_word(text, start, end):
                continue
            start, end = with_white_space(text, token, start, end, done)
            if start > done:
                pieces.append(Piece(done, start, None))
            pieces.append(Piece(start, end, token.id))
            done = position = end
        if done < len(text):
            pieces.append(Piece(done, len(text), None))
        return pieces


def touches_word(text: str, start: int, end: int) -> bool:
    return (start > 0 and is_word(text[start - 1])) or (end < len(text) and is_word(text[end]))


def with_white_space(text: str, token: AddedToken, start: int, end: int, floor: int) -> tuple[int, int]:
    """The range of a token and of the white space that it takes with it, not before `floor`."""
    while token.lstrip and start > floor and text[start - 1].isspace():
        start -= 1
    while token.rstrip and end < len(text) and text[end].isspace():
        end += 1
    return start, end
