"""`<think>...</think>` before the answer: DeepSeek R1, Qwen3 and what was made after them."""

from __future__ import annotations

from enum import Enum

from inferd_gateway.parsers.json_scan import skip
from inferd_gateway.parsers.marks import Marks
from inferd_gateway.parsers.pieces import Content, Piece, Reasoning

OPEN, CLOSE = "<think>", "</think>"
CLOSING = Marks([CLOSE])


class Start(Enum):
    """Where an answer begins, which the prompt tells."""

    INSIDE = "inside"  # the prompt opened the reasoning, or the model always reasons
    PERHAPS = "perhaps"  # the model opens it, or does not reason
    ANSWER = "answer"  # the prompt closed it


class State(Enum):
    BEGIN = "begin"
    REASONING = "reasoning"
    CLOSED = "closed"  # white space before the answer
    ANSWER = "answer"


class ReasoningSplitter:
    """White space around the reasoning belongs to nobody. An answer without any reasoning passes as it is."""

    def __init__(self, start: Start) -> None:
        self.reasoned = start is Start.INSIDE
        self._state = State.ANSWER if start is Start.ANSWER else State.BEGIN
        self._held = ""  # perhaps the start of a mark
        self._blank: list[str] = []  # white space that counts if more of the same follows
        self._spoken = False  # some reasoning was given out

    def push(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state is State.BEGIN:
            text = self._begin(text)
        if self._state is State.REASONING:
            text = self._reason(text, pieces)
        if self._state is State.CLOSED and (text := text.lstrip()):
            self._state = State.ANSWER
        if self._state is State.ANSWER and text:
            pieces.append(Content(text))
        return pieces

    def finish(self) -> list[Piece]:
        rest = self._held
        if self._state is State.BEGIN and not self.reasoned:
            rest = "".join([*self._blank, rest])
            return [Content(rest)] if rest else []
        return [Reasoning("".join([*self._blank, rest]))] if rest else []

    def _begin(self, text: str) -> str:
        """Decides as soon as there is enough of the text; what is left of it."""
        text, self._held = self._held + text, ""
        start = skip(text, 0)
        self._blank.append(text[:start])
        text = text[start:]
        if OPEN.startswith(text):
            self._held = text
            if text != OPEN:
                return ""
            text, self._held = OPEN, ""
        if text.startswith(OPEN):
            self.reasoned, text = True, text[len(OPEN) :]
        elif not self.reasoned:
            text = "".join([*self._blank, text])
        self._blank.clear()
        self._state = State.REASONING if self.reasoned else State.ANSWER
        return text

    def _reason(self, text: str, pieces: list[Piece]) -> str:
        """What follows the close."""
        text = self._held + text
        start, end = CLOSING.find(text, 0)
        self._held = text[start:] if start == end else ""
        inside = text[:start] if self._spoken else text[:start].lstrip()
        body = inside.rstrip()
        if body:
            pieces.append(Reasoning("".join([*self._blank, body])))
            self._blank.clear()
            self._spoken = True
        if self._spoken:
            self._blank.append(inside[len(body) :])
        if start == end:
            return ""
        self._state = State.CLOSED
        return text[end:]
