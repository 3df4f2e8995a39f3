"""EBNF as llama.cpp and xgrammar write it (`root ::= ...`) -> the library's dialect of Lark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from inferd.constraint.exactness import shortened
from inferd.constraint.lark import HEADER, literal
from inferd.errors import InvalidConstraint

MAX_DEPTH = 64
MAX_REPEAT = 100_000
LAST_CODE_POINT = 0x10FFFF
TOKEN = re.compile(
    r"""(?P<blank>(?:\s|\#[^\n]*)+)|(?P<define>::=)|(?P<name>[A-Za-z_][A-Za-z0-9_-]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<set>\[(?:[^\]\\\n]|\\.)*\])|(?P<repeat>\{\s*[0-9]+\s*(?:,\s*[0-9]*\s*)?\})
    |(?P<sign>[|()*+?.])""",
    re.VERBOSE,
)
ESCAPE = re.compile(r"\\(x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}|.)|(.)", re.DOTALL)
NAMED = {"n": "\n", "r": "\r", "t": "\t"}
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Part:
    """One item of a sequence. characters: what a set, or the first character of a string, may be."""

    text: str
    characters: Ranges | None = None
    pattern: str = ""  # of a set
    repeat: str = ""

    def render(self) -> str:
        return f"({self.text}){self.repeat}" if self.repeat else self.text


def ebnf_to_lark(source: str, special_texts: Sequence[tuple[str, int]]) -> str:
    """Raises InvalidConstraint with the line of the mistake."""
    return Parser(source, special_texts).parse()


class Parser:
    """Recursive descent; a rule ends where the next name ::= begins."""

    def __init__(self, source: str, special_texts: Sequence[tuple[str, int]]) -> None:
        self._special_texts = special_texts
        self._source = source
        self._tokens = self._scan()
        self._at = 0
        self._depth = 0
        self._names: dict[str, str] = {"root": "start"}
        self._used: dict[str, int] = {}

    def parse(self) -> str:
        rules: dict[str, str] = {}
        while self._kind() != "end":
            name = self._take("name")
            self._take("define")
            if name in rules:
                raise self._error(f"the rule {name} is defined twice")
            rules[name] = self._alternatives()
        if "root" not in rules:
            raise InvalidConstraint("the grammar has no rule root")
        for name, position in self._used.items():
            if name not in rules:
                raise self._error(f"the rule {name} is not defined", position)
        return HEADER + "".join(f"{self._rename(name)}: {body}\n" for name, body in rules.items())

    def _scan(self) -> list[tuple[str, str, int]]:
        """(kind, text, position) of every token, then the end."""
        tokens, position = [], 0
        while position < len(self._source):
            match = TOKEN.match(self._source, position)
            if match is None:
                raise self._error("unexpected character", position)
            assert match.lastgroup is not None
            if match.lastgroup != "blank":
                tokens.append((match.lastgroup, match.group(), position))
            position = match.end()
        return [*tokens, ("end", "", position), ("end", "", position)]

    def _kind(self, ahead: int = 0) -> str:
        return self._tokens[min(self._at + ahead, len(self._tokens) - 1)][0]

    def _text(self) -> str:
        return self._tokens[self._at][1]

    def _take(self, kind: str) -> str:
        if self._kind() != kind:
            raise self._error(f"expected {kind}")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _alternatives(self) -> str:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"groups are nested more than {MAX_DEPTH} deep")
        options = [self._sequence()]
        while self._text() == "|":
            self._at += 1
            options.append(self._sequence())
        self._depth -= 1
        return " | ".join(options)

    def _sequence(self) -> str:
        parts: list[Part] = []
        while (part := self._item()) is not None:
            parts.append(part)
        return " ".join(join(parts)) or '""'

    def _item(self) -> Part | None:
        """The next item with its repetitions; None at the end of the sequence."""
        kind, text = self._kind(), self._text()
        if kind in ("end", "define", "repeat") or text in ("|", ")") or (kind == "name" and self._kind(1) == "define"):
            if kind in ("define", "repeat"):
                raise self._error(f"unexpected {text}")
            return None
        self._at += 1
        part = self._atom(kind, text)
        while self._kind() == "repeat" or self._text() in ("*", "+", "?"):
            repeat = re.sub(r"\s", "", self._text())
            part = Part(part.render(), None, "", repeat) if part.repeat else self._repeated(part, repeat)
            self._at += 1
        return part

    def _repeated(self, part: Part, repeat: str) -> Part:
        if repeat in ("*", "+", "?"):
            return Part(part.text, part.characters, part.pattern, repeat)
        low, high = (digits and (digits.lstrip("0") or "0") for digits in repeat.strip("{}").partition(",")[::2])
        for digits in (low, high):
            if len(digits) > len(str(MAX_REPEAT)) or int(digits or 0) > MAX_REPEAT:  # int() refuses thousands of digits
                raise self._error(f"a repetition of {shortened(digits)} is more than {MAX_REPEAT}")
        least, most = int(low), int(high or low)
        if most < least:
            raise self._error(f"the repetition {repeat} is empty")
        if most == 0 and repeat != "{0,}":
            return Part('""')  # the library has no repetition that never happens
        return Part(part.text, part.characters, part.pattern, repeat)

    def _atom(self, kind: str, text: str) -> Part:
        if kind == "name":
            self._used.setdefault(text, self._tokens[self._at - 1][2])
            return Part(self._rename(text))
        if kind == "string":
            value = "".join(characters(text[1:-1]))
            first = [(ord(value[0]), ord(value[0]))] if value else None
            return Part(literal(value, self._special_texts), first)
        if kind == "set":
            return self._set(text[1:-1])
        if text == ".":
            return Part(r"/(.|\n)/", [(0, LAST_CODE_POINT)], r"(.|\n)")
        if text == "(":
            inner = self._alternatives()
            if self._text() != ")":
                raise self._error("expected )")
            self._at += 1
            return Part(f"({inner})")
        raise self._error(f"unexpected {text}")

    def _set(self, body: str) -> Part:
        negated = body.startswith("^")
        ranges = self._ranges(characters_with_marks(body[1:] if negated else body))
        if not ranges:
            raise self._error("an empty set")
        inside = "".join(f"\\u{{{low:X}}}-\\u{{{high:X}}}" for low, high in ranges)
        pattern = f"[{'^' if negated else ''}{inside}]"
        return Part(f"/{pattern}/", complement(ranges) if negated else ranges, pattern)

    def _ranges(self, marked: list[tuple[str, bool]]) -> Ranges:
        """marked: characters, and whether each was escaped; an unescaped - between two makes a range."""
        ranges, index = [], 0
        while index < len(marked):
            low = high = ord(marked[index][0])
            if index + 2 < len(marked) and marked[index + 1] == ("-", False):
                high = ord(marked[index + 2][0])
                index += 2
            if high < low:
                raise self._error("a set has a range that goes down")
            ranges.append((low, high))
            index += 1
        return ranges

    def _rename(self, name: str) -> str:
        return self._names.setdefault(name, f"rule_{len(self._names)}")

    def _error(self, message: str, position: int | None = None) -> InvalidConstraint:
        at = self._tokens[self._at][2] if position is None else position
        line = self._source.count("\n", 0, at) + 1
        return InvalidConstraint(f"line {line}: {message}, near {self._source[at : at + 20]!r}")


def join(parts: list[Part]) -> list[str]:
    """Render a sequence. A repeated set whose successor it cannot contain becomes one lexeme: a hundred times faster to
    match than character by character, and the same texts."""
    rendered = []
    for part, successor in zip(parts, [*parts[1:], None], strict=True):
        one_lexeme = (
            part.pattern
            and part.repeat in ("*", "+")
            and successor is not None
            and not successor.repeat
            and successor.characters is not None
            and part.characters is not None
            and disjoint(part.characters, successor.characters)
        )
        rendered.append(f"/{part.pattern}{part.repeat}/" if one_lexeme else part.render())
    return rendered


def characters_with_marks(body: str) -> list[tuple[str, bool]]:
    return [(unescape(match[1]), True) if match[1] else (match[2], False) for match in ESCAPE.finditer(body)]


def characters(body: str) -> list[str]:
    return [character for character, _ in characters_with_marks(body)]


def unescape(escape: str) -> str:
    if escape[0] in "xuU" and len(escape) > 1:
        code = int(escape[1:], 16)
        if code > LAST_CODE_POINT or 0xD800 <= code <= 0xDFFF:
            raise InvalidConstraint(f"\\{escape} is no character")
        return chr(code)
    if escape in "xuU":
        raise InvalidConstraint(f"\\{escape} without its digits")
    return NAMED.get(escape, escape)


def complement(ranges: Ranges) -> Ranges:
    result, start = [], 0
    for low, high in sorted(ranges):
        if low > start:
            result.append((start, low - 1))
        start = max(start, high + 1)
    return [*result, (start, LAST_CODE_POINT)] if start <= LAST_CODE_POINT else result


def disjoint(first: Ranges, second: Ranges) -> bool:
    return all(high < low2 or high2 < low for low, high in first for low2, high2 in second)
