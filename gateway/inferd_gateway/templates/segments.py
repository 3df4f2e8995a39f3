"""Which characters of a rendered prompt came from the caller, so that none of them becomes a control token.

Before rendering, every character of the caller's text that could be part of a control token is replaced by a stand-in
from a private-use plane. A stand-in survives whatever a template does with strings (strip, slices, joins, tojson), so
after rendering each one that is left says: this character is the caller's. Text without such characters is not touched,
and renders exactly as it would in Hugging Face's own renderer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

STAND_IN = 0x100000  # plane 16; the stand-in of a character c is chr(STAND_IN + ord(c))
_STAND_INS = re.compile("([\U00100000-\U0010ffff]+)")
_NO_MATCH = re.compile(r"(?!)")


class Protector:
    """Replaces what could forge one of `special` (the texts of the control tokens).

    cuts: texts that the template cuts out of or splits content at; a control token that only appears once they are
    gone is found too. pieces: the template's own texts; where one ends in the start of a control token, even a plain
    word after it counts. strict: the template rewrites text in ways not followed here, so every punctuation character
    of a control token is replaced wherever it stands.
    """

    def __init__(
        self, special: Sequence[str], cuts: Sequence[str] = (), pieces: Sequence[str] = (), *, strict: bool = False
    ) -> None:
        tokens = sorted({_fold(token) for token in special if token.strip()}, key=len, reverse=True)
        # Matched against lower-case text: templates may change case, and a plain prefix is found fastest.
        self._tokens = re.compile("|".join(map(re.escape, tokens))) if tokens else _NO_MATCH
        self._starts = {token[:length] for token in tokens for length in range(1, len(token))}
        self._ends = {token[-length:] for token in tokens for length in range(1, len(token))}
        self._all = "\0".join(tokens)
        self._longest = max(map(len, tokens), default=0)
        self._cuts = [cut for cut in cuts if cut]
        self._completes = any(self._tail(_fold(piece)) for piece in pieces)
        punctuation = {char for char in "".join(tokens) if not char.isalnum() and not char.isspace()}
        self._punctuation = re.compile(f"[{re.escape(''.join(punctuation))}]") if punctuation else self._tokens
        self._strict = strict

    def protect(self, text: str) -> str:
        text = _STAND_INS.sub("\ufffd", text)
        if self._strict or self._forged_by_removal(text):
            text = self._punctuation.sub(lambda match: _stand_in(match.group()), text)
        return self._protect_edges(self._protect_tokens(text))

    def protect_all(self, value: object) -> object:
        """The same for every string in a JSON value, keys included."""
        if isinstance(value, str):
            return self.protect(value)
        if isinstance(value, list):
            return [self.protect_all(item) for item in value]
        if isinstance(value, dict):
            return {self.protect(str(key)): self.protect_all(item) for key, item in value.items()}
        return value

    def _forged_by_removal(self, text: str) -> bool:
        left = text
        for _ in range(4):
            before = left
            for cut in self._cuts:
                left = left.replace(cut, "")
            if left == before:
                break
        return left != text and len(self._tokens.findall(_fold(left))) > len(self._tokens.findall(_fold(text)))

    def _protect_tokens(self, text: str) -> str:
        pieces, end = [], 0
        for match in self._tokens.finditer(_fold(text)):
            pieces += [text[end : match.start()], _stand_in(text[match.start() : match.end()])]
            end = match.end()
        return "".join([*pieces, text[end:]])

    def _protect_edges(self, text: str) -> str:
        """The ends could be completed by what the template, or another message, puts beside them."""
        if not self._completes and text.replace("_", "a").isalnum():
            return text
        folded = _fold(text)
        if len(folded) < self._longest and folded in self._all:
            return _stand_in(text)
        longest = min(self._longest - 1, len(text))
        head = next((size for size in range(longest, 0, -1) if folded[:size] in self._ends), 0)
        tail = self._tail(folded)
        if head + tail >= len(text):
            return _stand_in(text)
        return _stand_in(text[:head]) + text[head : len(text) - tail] + _stand_in(text[len(text) - tail :])

    def _tail(self, folded: str) -> int:
        """How many characters at the end are the start of a control token."""
        longest = min(self._longest - 1, len(folded))
        return next((size for size in range(longest, 0, -1) if folded[-size:] in self._starts), 0)


def split_segments(rendered: str) -> list[tuple[str, bool]]:
    """(text, trusted) runs; the texts together are the prompt."""
    parts = _STAND_INS.split(rendered)
    runs = ((part, index % 2 == 0) for index, part in enumerate(parts) if part)
    return [(text if trusted else restore(text), trusted) for text, trusted in runs]


def restore(text: str) -> str:
    return "".join(chr(ord(char) - STAND_IN) if ord(char) >= STAND_IN else char for char in text)


def _fold(text: str) -> str:
    """Lower case of the same length: U+0130 is the only character whose lower case is longer."""
    return text.replace("\u0130", "i").lower()


def _stand_in(text: str) -> str:
    return "".join(char if char.isspace() or ord(char) > 0xFFFD else chr(STAND_IN + ord(char)) for char in text)
