"""Matcher: one choice's place in its constraint. MatcherFactory: compiled grammars, kept while they are in use."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from inferd.constraint.lark import COMMENT, JSON_TEXT
from inferd.constraint.number_bound import NumberBound
from inferd.constraint.vocabulary import MatchVocabulary, clear
from inferd.errors import InvalidConstraint
from inferd.request import Request

MAX_LEXER_STATES = 50_000  # 1 to 2 kB each
# Of the parser, for one mask: an ambiguous grammar that grows with the text would hold up every step with its masks. A
# fifth of the library's default: 18 ms at most where 400 ms were measured; what is not hostile needs far less.
MAX_STEP_ITEMS = 10_000
MAX_GRAMMARS = 256
MAX_GRAMMAR_BYTES = 64 * 1024 * 1024
BASE_BYTES = 64 * 1024  # of a compiled grammar: 32 to 60 KiB were measured for small ones,
BYTES_PER_CHARACTER = 64  # and 20 bytes per character of a large one
PLACE = re.compile(
    r"^(at )?(?P<line>\d+)\(\d+\): (failed to compile JSON schema: )?"
)  # in the grammar, not in the caller's text


class Matcher:
    """Implements inferd.sequence.Matcher. A matcher that has failed allows nothing."""

    def __init__(
        self, vocabulary: MatchVocabulary, library: Any, starts_after: bytes, may_end: bool, numbers: NumberBound | None
    ) -> None:
        """library is this matcher's own. may_end: the model may draw an end-of-text token where the text may end.
        numbers: set when the grammar has JSON in it."""
        self._vocabulary = vocabulary
        self._library = library
        self._starts_after = starts_after
        self._may_end = may_end
        self._before: bytes | None = b"" if starts_after else None  # tail of the text before the start; None: started
        self._numbers = numbers
        self._failed = False

    @property
    def complete(self) -> bool:
        """Whether the text matches, and nothing may follow."""
        started = self._before is None and not self._failed
        return started and bool(self._library.is_stopped()) and not self._library.is_error()

    def advance(self, token_id: int) -> None:
        if self._before is None:
            self._failed = self._failed or not self._library.consume_token(token_id)
            if self._numbers is not None:
                self._numbers.advance(token_id)
        else:
            self._look_for_start(self._before + self._vocabulary.token_bytes[token_id])

    def mask(self) -> bytes:
        """The tokens that may come next, as in StepPlan.masks."""
        if self._failed:
            return b""
        if self._before is not None:
            return self._vocabulary.all_but_end
        mask: bytes = self._library.compute_bitmask()
        if self._library.is_error():
            self._failed = True
            return b""
        if not self._may_end:
            endless = bytearray(mask)
            clear(endless, self._vocabulary.eos_token_ids)
            mask = bytes(endless)
        return mask if self._numbers is None else self._numbers.bounded(mask)

    def fork(self) -> Matcher:
        """Another matcher at the same place."""
        numbers = self._numbers and self._numbers.fork()
        child = Matcher(self._vocabulary, self._library.deep_copy(), self._starts_after, self._may_end, numbers)
        child._before, child._failed = self._before, self._failed
        return child

    def _look_for_start(self, text: bytes) -> None:
        found = text.find(self._starts_after)
        if found < 0:
            keep = len(self._starts_after) - 1
            self._before = text[len(text) - keep :] if keep < len(text) else text
            return
        self._before = None
        # A token may hold more than the end of the start text. White space there belongs to neither side.
        rest = text[found + len(self._starts_after) :].lstrip()
        if rest:
            ids = self._vocabulary.library.greedy_tokenize(rest.decode("utf-8", "replace"))
            self._failed = not self._library.consume_tokens(ids)


class MatcherFactory:
    """Compiles grammars, and remembers the compiled ones by use, bounded in number and in estimated bytes.

    Thread-safe. Compiling releases the interpreter's lock.
    """

    def __init__(self, vocabulary: MatchVocabulary) -> None:
        self.vocabulary = vocabulary
        self._limits = LLParserLimits(
            max_lexer_states=MAX_LEXER_STATES, step_max_items=MAX_STEP_ITEMS, verbose_errors=False
        )
        self._lock = threading.Lock()
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self._bytes = 0

    def for_request(self, request: Request) -> Matcher:
        """The matcher of a request's constraint, past the tokens that were generated before."""
        assert request.constraint is not None
        starts_after, may_end = request.constraint.starts_after.encode(), bool(request.stop.eos_token_ids)
        matcher = self.matcher(request.constraint.grammar, starts_after, may_end)
        if request.resumed_tokens:
            for token_id in request.prompt_token_ids[-request.resumed_tokens :]:
                matcher.advance(token_id)
        return matcher

    def matcher(self, grammar: str, starts_after: bytes = b"", may_end: bool = True) -> Matcher:
        """A matcher at the start. Raises InvalidConstraint when the grammar does not compile."""
        with self._lock:
            compiled = self._compiled.get(grammar)
            if compiled is not None:
                self._compiled.move_to_end(grammar)
                copy = compiled.deep_copy()
                return Matcher(self.vocabulary, copy, starts_after, may_end, self._numbers_in(grammar))
        compiled = LLMatcher(self.vocabulary.library, grammar, log_level=0, limits=self._limits)
        if compiled.is_error():
            error = compiled.get_error()
            raise InvalidConstraint(first_line(error), field=place_of(error, grammar))
        copy = compiled.deep_copy()
        with self._lock:
            self._remember(grammar, compiled)
        return Matcher(self.vocabulary, copy, starts_after, may_end, self._numbers_in(grammar))

    def _numbers_in(self, grammar: str) -> NumberBound | None:
        return NumberBound(self.vocabulary) if JSON_TEXT in grammar else None

    def _remember(self, grammar: str, compiled: Any) -> None:
        if grammar in self._compiled:
            return
        self._compiled[grammar] = compiled
        self._bytes += estimated_bytes(grammar)
        while len(self._compiled) > MAX_GRAMMARS or (self._bytes > MAX_GRAMMAR_BYTES and len(self._compiled) > 1):
            oldest, _ = self._compiled.popitem(last=False)
            self._bytes -= estimated_bytes(oldest)


def estimated_bytes(grammar: str) -> int:
    return BASE_BYTES + BYTES_PER_CHARACTER * len(grammar)


def place_of(error: str, grammar: str) -> str | None:
    """What the comment above the line with the error says: for a structural tag, which of its parts it is."""
    found = PLACE.match(error)
    above = grammar.split("\n")[int(found["line"]) - 2] if found else ""
    return above.removeprefix(COMMENT) if above.startswith(COMMENT) else None


def first_line(error: str) -> str:
    """The library's message without its picture of the grammar."""
    lines = error.strip().split("\n")
    line = PLACE.sub("", lines[0])
    if line.endswith("regex parse error:"):  # the pattern, a pointer into it and the reason follow
        reasons = [text.removeprefix("error: ") for text in lines if text.startswith("error: ")]
        line = " ".join([line, *reasons[:1]])
    return line if len(line) <= 300 else line[:299] + "…"
