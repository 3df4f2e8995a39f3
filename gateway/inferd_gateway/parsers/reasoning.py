"""`<think>...</think>` before the answer, from DeepSeek R1 and Qwen3 on; `[THINK]...[/THINK]` of Mistral's models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from inferd_gateway.parsers.json_scan import skip
from inferd_gateway.parsers.marks import Marks
from inferd_gateway.parsers.pieces import Content, Piece, Reasoning


@dataclass(frozen=True)
class ReasoningFormat:
    """always: the model reasons, whether or not its prompt or its text opens the reasoning."""

    open: str = "<think>"
    close: str = "</think>"
    always: bool = False


REASONING_FORMATS: Mapping[str, ReasoningFormat] = MappingProxyType(
    {
        "deepseek_r1": ReasoningFormat(always=True),
        "qwen3": ReasoningFormat(),
        "mistral": ReasoningFormat("[THINK]", "[/THINK]"),
    }
)


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

    def __init__(self, start: Start, marks: ReasoningFormat = REASONING_FORMATS["qwen3"]) -> None:
        self._opening, self._closing = marks.open, Marks([marks.close])
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
        if self._opening.startswith(text):
            self._held = text
            if text != self._opening:
                return ""
            self._held = ""
        if text.startswith(self._opening):
            self.reasoned, text = True, text[len(self._opening) :]
        elif not self.reasoned:
            text = "".join([*self._blank, text])
        self._blank.clear()
        self._state = State.REASONING if self.reasoned else State.ANSWER
        return text

    def _reason(self, text: str, pieces: list[Piece]) -> str:
        """What follows the close."""
        text = self._held + text
        start, end = self._closing.find(text, 0)
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
