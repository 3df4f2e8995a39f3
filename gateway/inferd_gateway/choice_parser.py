"""One choice's text as pieces: reasoning, content, numbered tool calls."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from inferd_gateway.parsers.marks import Remover
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Parser, Piece, Reasoning
from inferd_gateway.parsers.reasoning import REASONING_FORMATS, ReasoningFormat, ReasoningSplitter, Start


@dataclass(frozen=True)
class ParsePlan:
    """How the choices of one generation are read.

    tools: makes the parser of tool calls, None when the text is not searched for any. hidden: control tokens that the
    daemon leaves in the text and nobody asked for. only_calls: the answer was held to calls, so that other text in it
    is what stands around them, whole or cut. reasoning_end: the id of the token that ends the reasoning.
    """

    reasoning: Start | None = None
    reasoning_format: ReasoningFormat = REASONING_FORMATS["qwen3"]
    include_reasoning: bool = True
    reasoning_end: int | None = None
    tools: Callable[[], Parser] | None = None
    one_call: bool = False
    only_calls: bool = False
    hidden: tuple[str, ...] = ()

    def parser(self) -> ChoiceParser:
        return ChoiceParser(self)


class ChoiceParser:
    """Chains the parsers of a plan. `calls`: the tool calls so far."""

    def __init__(self, plan: ParsePlan) -> None:
        self.calls = 0
        self._plan = plan
        self._remover = Remover(plan.hidden) if plan.hidden else None
        self._splitter = None if plan.reasoning is None else ReasoningSplitter(plan.reasoning, plan.reasoning_format)
        self._tools = plan.tools() if plan.tools else None
        self._tokens = 0
        self._reasoning_over = False

    def push(self, text: str) -> list[Piece]:
        if not text:
            return []
        text = self._remover.push(text) if self._remover else text
        return self._numbered(self._split(text))

    def finish(self) -> list[Piece]:
        pieces = self._split(self._remover.finish()) if self._remover else []
        if self._splitter is not None:
            pieces += self._called(self._splitter.finish())
        if self._tools is not None:
            pieces += self._tools.finish()
        return self._numbered(pieces)

    def count(self, token_ids: Sequence[int]) -> None:
        """Tokens up to the one that ends the reasoning, that one included, are reasoning."""
        end = self._plan.reasoning_end
        if end is not None and not self._reasoning_over:
            self._reasoning_over = end in token_ids
            self._tokens += list(token_ids).index(end) + 1 if self._reasoning_over else len(token_ids)

    @property
    def reasoning_tokens(self) -> int | None:
        """None: not known."""
        if self._splitter is None or not self._splitter.reasoned:
            return 0
        return None if self._plan.reasoning_end is None else self._tokens

    def _split(self, text: str) -> list[Piece]:
        return self._called([Content(text)] if self._splitter is None else self._splitter.push(text))

    def _called(self, pieces: list[Piece]) -> list[Piece]:
        """Content is searched for calls."""
        if self._tools is None:
            return pieces
        found: list[Piece] = []
        for piece in pieces:
            found += self._tools.push(piece.text) if isinstance(piece, Content) else [piece]
        return found

    def _numbered(self, pieces: list[Piece]) -> list[Piece]:
        found: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, CallStart):
                self.calls += 1
                piece = replace(piece, index=self.calls - 1, call_id=new_call_id())
            elif isinstance(piece, Arguments):
                piece = replace(piece, index=self.calls - 1)
            if self._wanted(piece):
                found.append(piece)
        return found

    def _wanted(self, piece: Piece) -> bool:
        if isinstance(piece, Reasoning):
            return self._plan.include_reasoning
        if isinstance(piece, Content):
            return not self._plan.only_calls
        return not (isinstance(piece, CallStart | Arguments) and self._plan.one_call and piece.index > 0)


def new_call_id() -> str:
    """Nine letters and digits, as Mistral's templates demand; others take anything."""
    return uuid.uuid4().hex[:9]
