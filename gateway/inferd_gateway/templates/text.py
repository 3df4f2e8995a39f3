"""Text that knows which of its characters are the caller's, whatever a template does with it.

A template cannot tell a Text from the string that it equals. What joins, cuts or replaces keeps the origin of every
character; whatever else is made of a caller's text counts as the caller's as a whole, so that nothing gets out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, repeat
from typing import Any, NamedTuple, SupportsIndex

from jinja2 import Undefined
from markupsafe import Markup

CALLER = 1
LAST_MESSAGE = 2  # the caller's too: what continue_final_message continues
MAX_REPEATED = 4096


class Span(NamedTuple):
    """text[start:end] is the caller's."""

    start: int
    end: int
    origin: int


Spans = tuple[Span, ...]


class Text(str):
    """A string of which the spans, ascending and apart from each other, are the caller's."""

    __slots__ = ("_spans",)
    _spans: Spans

    def __new__(cls, text: str, spans: Spans = ()) -> Text:
        made = super().__new__(cls, text)
        made._spans = spans
        return made

    def _part(self, start: int, end: int) -> str:
        if start >= end:
            return ""
        spans = self._spans
        if len(spans) == 1 and spans[0].start <= start and end <= spans[0].end:
            return Text(str.__getitem__(self, slice(start, end)), (Span(0, end - start, spans[0].origin),))
        kept = tuple(
            Span(max(span.start, start) - start, min(span.end, end) - start, span.origin)
            for span in spans
            if span.start < end and span.end > start
        )
        return made(str.__getitem__(self, slice(start, end)), kept)

    def _located(self, parts: Iterable[str]) -> list[str]:
        """`parts` follow each other in this text, with something between them."""
        found, position = [], 0
        for part in parts:
            start = str.index(self, part, position)
            position = start + len(part)
            found.append(self._part(start, position))
        return found

    def _adjacent(self, parts: Iterable[str]) -> tuple[str, ...]:
        """`parts` are this text, with nothing between them."""
        found, position = [], 0
        for part in parts:
            found.append(self._part(position, position + len(part)))
            position += len(part)
        return tuple(found)

    def _cased(self, text: str) -> str:
        """Changing the case makes no character shorter: of equal length, each stands where it stood."""
        return made(text, self._spans) if len(text) == len(self) else owned(text, self)

    def __str__(self) -> str:
        return self

    def __repr__(self) -> str:
        return owned(str.__repr__(self), self)

    def __format__(self, spec: str) -> str:
        return owned(str.__format__(self, spec), self) if spec else self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, end, step = key.indices(len(self))
            if step == 1:
                return self._part(start, end)
            return owned(str.__getitem__(self, key), self)
        str.__getitem__(self, key)  # which refuses what is no index
        start = range(len(self))[key]
        return self._part(start, start + 1)

    def __iter__(self) -> Iterator[str]:
        return (self._part(index, index + 1) for index in range(len(self)))

    def __add__(self, other: str) -> str:
        return concat((self, other)) if is_text(other) else NotImplemented

    def __radd__(self, other: str) -> str:
        return concat((other, self)) if is_text(other) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        text = str.__mul__(self, count)
        if len(text) * len(self._spans) > MAX_REPEATED * max(1, len(self)):
            return owned(text, self)
        return concat(repeat(self, count.__index__()))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return owned(str.__mod__(self, values), self, values)

    def join(self, parts: Iterable[str], /) -> str:
        pieces = list(parts)
        str.join(self, pieces)  # which refuses what is no string
        between = chain([""], repeat(self))
        return concat(chain.from_iterable(zip(between, pieces, strict=False)))

    def strip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(str.rstrip(self, chars)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._adjacent(str.splitlines(self, True))
        return [line[: len(bare)] for line, bare in zip(whole, str.splitlines(self, keepends), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._adjacent(str.partition(self, sep))
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._adjacent(str.rpartition(self, sep))
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return owned(str.replace(self, old, new, count), self, new)
        return lifted(new).join(self.split(old, count))

    def lower(self) -> str:
        return self._cased(str.lower(self))

    def upper(self) -> str:
        return self._cased(str.upper(self))

    def title(self) -> str:
        return self._cased(str.title(self))

    def capitalize(self) -> str:
        return self._cased(str.capitalize(self))

    def swapcase(self) -> str:
        return self._cased(str.swapcase(self))

    def casefold(self) -> str:
        return self._cased(str.casefold(self))

    def center(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return owned(str.center(self, width, fill), self, fill)

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return owned(str.ljust(self, width, fill), self, fill)

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return owned(str.rjust(self, width, fill), self, fill)

    def zfill(self, width: SupportsIndex, /) -> str:
        return owned(str.zfill(self, width), self)

    def expandtabs(self, tabsize: SupportsIndex = 8) -> str:
        return owned(str.expandtabs(self, tabsize), self)

    def translate(self, table: Any, /) -> str:
        return owned(str.translate(self, table), self, table)

    def format(self, *args: Any, **kwargs: Any) -> str:
        return owned(str.format(self, *args, **kwargs), self, args, kwargs)

    def format_map(self, mapping: Any, /) -> str:
        return owned(str.format_map(self, mapping), self, mapping)


class TextMarkup(Markup):
    """Jinja's safe string: it escapes what is added to it. What is not overridden here makes all of it the caller's."""

    __slots__ = ("_spans",)
    _spans: Spans

    def __new__(cls, text: str = "", spans: Spans | None = None) -> TextMarkup:
        made = super().__new__(cls, str.__str__(text))
        made._spans = (Span(0, len(made), CALLER),) if spans is None else spans
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(lifted(self))

    def __add__(self, other: Any) -> TextMarkup:
        return marked(concat((self, escaped(other)))) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: Any) -> TextMarkup:
        return marked(concat((escaped(other), self))) if isinstance(other, str) else NotImplemented


ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&#39;", '"': "&#34;"}


def marked(text: str) -> TextMarkup:
    return TextMarkup(text, spans_of(text))


def escaped(value: Any) -> TextMarkup:
    """What markupsafe makes of a value that is added to Markup."""
    if isinstance(value, Markup):
        return marked(value)
    text = written(value)
    for char, name in ESCAPES.items():
        text = lifted(text).replace(char, own(name))
    return marked(text)


def is_text(value: object) -> bool:
    """Whether it is a string that adds to another as strings do; jinja2's Markup escapes."""
    return type(value) is str or isinstance(value, Text)


def spans_of(text: str) -> Spans:
    if type(text) is str:
        return ()
    if isinstance(text, Text | TextMarkup):
        return text._spans
    return (Span(0, len(text), CALLER),)  # plain Markup does not know


def made(text: str, spans: Spans) -> str:
    return Text(text, spans) if spans else text


def lifted(text: str) -> Text:
    """The same text, its methods those of Text."""
    return text if isinstance(text, Text) else Text(str.__str__(text), spans_of(text))


def own(value: Any, origin: int = CALLER) -> Any:
    """A JSON value with every string in it the caller's, keys included."""
    if isinstance(value, str):
        return Text(value, (Span(0, len(value), origin),)) if value else value
    if isinstance(value, list):
        return [own(item, origin) for item in value]
    if isinstance(value, dict):
        return {own(str(key), origin): own(item, origin) for key, item in value.items()}
    return value


def owned(text: str, *sources: Any) -> str:
    """`text` was made of `sources`, nobody knows how: it is the caller's where any of them holds something of his."""
    plain = str.__str__(text)
    return own(plain) if any(map(holds_text_of_caller, sources)) else plain


def holds_text_of_caller(value: Any) -> bool:
    if isinstance(value, str):
        return bool(spans_of(value))
    if isinstance(value, Mapping):
        return any(holds_text_of_caller(item) for pair in value.items() for item in pair)
    if isinstance(value, list | tuple | set | frozenset):
        return any(map(holds_text_of_caller, value))
    # A namespace, a generator, a macro: they may hold anything.
    return not (value is None or isinstance(value, int | float | Undefined))


def written(value: Any) -> str:
    """What a template prints of a value."""
    if is_text(value):
        text: str = value
        return text
    return made(str.__str__(value), spans_of(value)) if isinstance(value, str) else owned(str(value), value)


def concat(parts: Iterable[str]) -> str:
    pieces = list(parts)
    spans: list[Span] = []
    position = 0
    for piece in pieces:
        for start, end, origin in spans_of(piece):
            if spans and spans[-1].end == position + start and spans[-1].origin == origin:
                spans[-1] = Span(spans[-1].start, position + end, origin)
            else:
                spans.append(Span(position + start, position + end, origin))
        position += len(piece)
    return made("".join(pieces), tuple(spans))
