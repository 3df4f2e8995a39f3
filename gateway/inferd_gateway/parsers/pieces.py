"""What parsers give out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What the model thought before its answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call begins. Parsers know the name only; ChoiceParser numbers the calls and names them."""

    name: str
    index: int = 0
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next part of the JSON text of the arguments of the call that began last."""

    text: str
    index: int = 0


Piece = Reasoning | Content | CallStart | Arguments


class Parser(Protocol):
    """`push` takes the next text, `finish` is called once after the last; both give out what is certain by then."""

    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...
