"""Packed log probabilities of inferd.v1 as the three shapes that HTTP callers know."""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from inferd.v1 import inference_pb2 as pb

FLOOR = -9999.0
LONGEST_CHARACTER = 4  # bytes, and so at most tokens


@dataclass(frozen=True)
class Token:
    """One token at one position."""

    token_id: int
    logprob: float
    raw: bytes
    rank: int = 0


@dataclass(frozen=True)
class Position:
    """The chosen token and the alternatives that were asked for."""

    chosen: Token
    top: tuple[Token, ...]


def positions(packed: pb.Logprobs) -> Iterator[Position]:
    start = 0
    top_bytes, chosen_bytes = packed.top_token_bytes, packed.token_bytes
    for index, value in enumerate(packed.values):
        count = packed.top_counts[index] if packed.top_counts else 0
        top = tuple(
            Token(
                packed.top_token_ids[at],
                finite(packed.top_values[at]),
                top_bytes[at] if top_bytes else b"",
                at - start + 1,
            )
            for at in range(start, start + count)
        )
        start += count
        rank = packed.ranks[index] if packed.ranks else 0
        raw = chosen_bytes[index] if chosen_bytes else b""
        yield Position(Token(packed.token_ids[index], finite(value), raw, rank), top)


def finite(value: float) -> float:
    return value if math.isfinite(value) and value > FLOOR else FLOOR


class TokenNames:
    """How a token is written: its text, or `token_id:N` when the caller wants that."""

    def __init__(self, *, as_ids: bool) -> None:
        self._as_ids = as_ids

    def text(self, token: Token) -> str:
        return f"token_id:{token.token_id}" if self._as_ids else token.raw.decode("utf-8", "replace")

    def distinct(self, token: Token) -> str:
        """Different for different bytes, also where they are no whole characters."""
        if self._as_ids:
            return self.text(token)
        try:
            return token.raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.raw)


def chat_logprobs(packed: pb.Logprobs, names: TokenNames) -> list[dict[str, Any]]:
    """`choices[].logprobs.content`."""

    def entry(token: Token) -> dict[str, Any]:
        return {"token": names.text(token), "logprob": token.logprob, "bytes": list(token.raw)}

    return [
        entry(position.chosen) | {"top_logprobs": [entry(token) for token in position.top]}
        for position in positions(packed)
    ]


def prompt_logprobs(packed: pb.Logprobs, names: TokenNames) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: one map from token id to its log probability per position, none for the first token."""
    found: list[dict[str, Any] | None] = [None] * packed.start_position
    for position in positions(packed):
        found.append(
            {
                str(token.token_id): {"logprob": token.logprob, "rank": token.rank, "decoded_token": names.text(token)}
                for token in (*position.top, position.chosen)
            }
        )
    return found


class CompletionLogprobs:
    """The parallel lists of /v1/completions. Offsets count characters of the text so far, over all chunks of a choice.

    hidden: token ids that are not part of the generated text (special tokens), so they do not move the offset.
    """

    def __init__(self, names: TokenNames, hidden: frozenset[int]) -> None:
        self._names = names
        self._hidden = hidden
        self._place = Place()

    def prompt_columns(self, info: pb.PromptInfo) -> dict[str, list[Any]]:
        """Of an echoed prompt. Nothing stands before its first token, so that has no probability."""
        rows = [self._row(position) for position in positions(info.logprobs)]
        self._place = Place.after(info)
        tokens = [Token(token_id, 0.0, raw) for token_id, raw in zip(info.token_ids, info.token_bytes, strict=True)]
        return {
            "tokens": [self._names.distinct(token) for token in tokens],
            "token_logprobs": [None, *(value for _, value, _ in rows)],
            "top_logprobs": [None, *(top for _, _, top in rows)],
            "text_offset": character_offsets(info.text, info.starts),
        }

    def columns(self, packed: pb.Logprobs) -> dict[str, list[Any]]:
        rows = [self._row(position) for position in positions(packed)]
        return {
            "tokens": [self._names.distinct(token) for token, _, _ in rows],
            "token_logprobs": [value for _, value, _ in rows],
            "top_logprobs": [top for _, _, top in rows],
            "text_offset": [
                self._place.of(b"" if token.token_id in self._hidden else token.raw) for token, _, _ in rows
            ],
        }

    def _row(self, position: Position) -> tuple[Token, float, dict[str, float]]:
        top = {self._names.distinct(token): token.logprob for token in reversed((position.chosen, *position.top))}
        ordered = dict(sorted(top.items(), key=lambda item: -item[1]))
        return position.chosen, position.chosen.logprob, ordered


class Place:
    """Where the next token of a text starts, in characters."""

    def __init__(self, start: int = 0) -> None:
        self._next = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @classmethod
    def after(cls, info: pb.PromptInfo) -> Place:
        """Behind a prompt. A character that it leaves unfinished is not in its text, and may be finished yet."""
        place = cls(len(info.text))
        place._decoder.decode(b"".join(info.token_bytes[-LONGEST_CHARACTER:]))
        return place

    def of(self, raw: bytes) -> int:
        """The start of the next token, which adds `raw`. One that goes on with a character starts where that does."""
        pending = self._decoder.getstate()[0]
        if pending and raw and not goes_on(pending, raw):
            self._next += len(self._decoder.decode(b"", final=True))
            self._decoder.reset()
        start = self._next
        self._next += len(self._decoder.decode(raw))
        return start


def goes_on(pending: bytes, raw: bytes) -> bool:
    """Whether the first byte of `raw` can follow the unfinished character `pending`."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(pending + raw[:1])
    except UnicodeDecodeError:
        return False
    return True


def character_offsets(text: str, starts: Iterable[int]) -> list[int]:
    """Offsets in UTF-8 bytes, which ascend and lie between characters, as offsets in characters."""
    data, offsets, characters, before = text.encode(), [], 0, 0
    for start in starts:
        characters += len(data[before:start].decode())
        before = start
        offsets.append(characters)
    return offsets


def join_columns(parts: list[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [value for part in parts for value in part[name]] for name in names}
