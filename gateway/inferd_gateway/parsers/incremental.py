"""What the parsers of tool calls share: a text with a place in it, and the steps that move the place."""

from __future__ import annotations

from collections.abc import Callable, Container

from inferd_gateway.parsers.json_scan import JsonCall, JsonValue
from inferd_gateway.parsers.marks import Marks
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Piece


class IncrementalParser:
    """Runs `_step` while it moves. A step returns False when it needs more text than there is; only the start of a mark
    is left unread then, so that no text is read twice."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._out: list[Piece] = []
        self._blank: list[str] = []  # white space that belongs to the content if more of it follows
        self._called = False
        self._step: Callable[[], bool] = self._between
        self._opening = ""  # what stood before the call at hand; with it, a broken one is content again
        self._call = JsonCall()
        self._value = JsonValue()

    def push(self, text: str) -> list[Piece]:
        self._text, self._at = self._text[self._at :] + text, 0
        while self._at < len(self._text) and self._step():
            pass
        return self._given()

    def finish(self) -> list[Piece]:
        rest, self._at = self._text[self._at :], len(self._text)
        self._end(rest)
        if self._blank and not self._called:
            self._out.append(Content("".join(self._blank)))
        return self._given()

    def _between(self) -> bool:
        """Text outside of calls."""
        raise NotImplementedError

    def _end(self, rest: str) -> None:
        """The text is over; `rest` is what no step took."""
        if self._step == self._in_call and not self._call.started:
            rest = self._opening + self._call.raw() + rest
        elif self._step in (self._in_call, self._in_arguments):
            rest = ""
        self._say(rest)

    def _given(self) -> list[Piece]:
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        body = text.rstrip()
        if body:
            self._out.append(Content("".join(self._blank) + body))
            self._blank.clear()
        if len(body) < len(text):
            self._blank.append(text[len(body) :])

    def _until(self, marks: Marks) -> tuple[str, str]:
        """(text up to the mark, the mark); the place is then behind it. No mark: ''."""
        start, end = marks.find(self._text, self._at)
        before, self._at = self._text[self._at : start], end
        return before, self._text[start:end]

    def _start_call(self, opening: str, known: Container[str] | None = None) -> None:
        """A JSON object with name and arguments begins here; `_after_call` is the step that follows."""
        self._opening, self._call, self._step = opening, JsonCall(known), self._in_call

    def _in_call(self) -> bool:
        call = self._call
        self._at = call.take(self._text, self._at)
        pieces = call.pieces()
        if pieces:
            self._blank.clear()
            self._called = True
            self._out += pieces
        if call.broken and not call.started:
            self._say(self._opening + call.raw())
            self._step = self._between
        elif call.done or call.broken:
            self._step = self._after_call
        return True

    def _after_call(self) -> bool:
        """What follows a call."""
        raise NotImplementedError

    def _start_arguments(self, name: str) -> None:
        """The name is known, and its arguments begin here, a JSON object."""
        self._blank.clear()
        self._called = True
        self._out.append(CallStart(name))
        self._value, self._step = JsonValue(), self._in_arguments

    def _in_arguments(self) -> bool:
        end = self._value.take(self._text, self._at)
        self._out.append(Arguments(self._text[self._at : end]))
        self._at = end
        if self._value.done or self._value.broken:
            self._step = self._after_call
        return True
