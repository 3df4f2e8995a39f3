"""Tokenizer: text to token ids and back, whatever file the vocabulary came from.

Encoding and decoding are pure and thread-safe. A long text costs seconds, so an event loop must hand `encode` of more
than a few kilobytes to a thread; the work is done in the tokenizers library, which releases the GIL meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

import tokenizers

from inferd.checkpoint import Checkpoint, GgufVocabulary
from inferd.errors import StartupError
from inferd.text.file_tokenizer import parts_from_files
from inferd.text.gguf_tokenizer import parts_from_gguf
from inferd.text.parts import TokenizerParts
from inferd.text.rows import parts_within_rows, within_rows
from inferd.text.splitter import AddedTokenSplitter, Piece

# Runs of text, each with whether special-token strings in it are control tokens.
Segments: TypeAlias = Sequence[tuple[str, bool]]


class SpecialToken(NamedTuple):
    """role is bos, eos, pad, unk, or empty for any other control token."""

    role: str
    text: str
    id: int


class Encoded(NamedTuple):
    """Token i covers bytes [starts[i], ends[i]) of the text's UTF-8; a BOS or EOS that was added covers none."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


class Tokenizer:
    """Immutable after construction."""

    def __init__(self, parts: TokenizerParts, eos_token_ids: tuple[int, ...] = ()) -> None:
        """eos_token_ids: ids that end a generation besides the tokenizer's own."""
        self._parts = parts
        self._splitter = AddedTokenSplitter(parts.added)
        self._special_ids = frozenset(token.id for token in parts.added if token.special)
        self._added_texts = {token.id: token.text for token in parts.added}
        self.kind = parts.kind
        self.vocab_size = len(parts.token_bytes)
        self.byte_level = parts.byte_level
        self.adds_bos = bool(parts.prefix)
        self.adds_eos = bool(parts.suffix)
        self.fingerprint = parts.fingerprint
        self.eos_token_ids = tuple(dict.fromkeys((*eos_token_ids, *parts.eos_token_ids)))
        self.special_tokens = special_tokens(parts)

    @property
    def parts(self) -> TokenizerParts:
        return self._parts

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> Tokenizer:
        """StartupError, one line, for a tokenizer that is missing, malformed or not supported."""
        source = checkpoint.tokenizer
        assert source is not None, "opened with its vocabulary"
        rows = checkpoint.config.get("vocab_size")
        try:
            if isinstance(source, GgufVocabulary):
                parts = parts_from_gguf(within_rows(source, rows) if isinstance(rows, int) else source)
            else:
                parts = parts_from_files(source)
                parts = parts_within_rows(parts, rows) if isinstance(rows, int) else parts
        except StartupError as error:
            prefix = "" if str(checkpoint.path) in str(error) else f"{checkpoint.path}: "
            raise StartupError(f"{prefix}{error}") from None
        ends = eos_ids(checkpoint.generation_config) or eos_ids(checkpoint.config)
        return cls(parts, ends)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The tokens that encode() puts before plain text."""
        return self._parts.prefix

    @property
    def suffix(self) -> tuple[int, ...]:
        """The tokens that encode() puts behind plain text."""
        return self._parts.suffix

    def encode(self, text: str | Segments, add_special_tokens: bool | None = None) -> list[int]:
        """Token ids of one text. A str is trusted; Segments say it run by run, and are tokenized as one text.

        Control tokens are recognized in trusted runs only. add_special_tokens: put the tokenizer's BOS / EOS around it;
        None: yes for a str, no for Segments. A BOS or EOS that is there already is not added again.
        """
        whole, trusted, add = normalize_input(text, add_special_tokens)
        pieces = self._splitter.split(whole, trusted)
        encodings = self._encode_plain(whole, pieces, offsets=False)
        ids: list[int] = []
        for piece in pieces:
            if piece.token_id is None:
                ids += next(encodings).ids
            else:
                ids.append(piece.token_id)
        prefix, suffix = self._around(ids) if add else ((), ())
        return [*prefix, *ids, *suffix]

    def encode_with_offsets(self, text: str | Segments, add_special_tokens: bool | None = None) -> Encoded:
        """Like encode, with the UTF-8 byte range of each token. Tokens that share a character share its range."""
        whole, trusted, add = normalize_input(text, add_special_tokens)
        pieces = self._splitter.split(whole, trusted)
        encodings = self._encode_plain(whole, pieces, offsets=True)
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        for piece in pieces:
            if piece.token_id is None:
                encoding = next(encodings)
                ids += encoding.ids
                spans += [(piece.start + start, piece.start + end) for start, end in encoding.offsets]
            else:
                ids.append(piece.token_id)
                spans.append((piece.start, piece.end))
        at = byte_positions(whole)
        prefix, suffix = self._around(ids) if add else ((), ())
        before, after = [0] * len(prefix), [at[-1]] * len(suffix)
        starts = [*before, *(at[start] for start, _ in spans), *after]
        ends = [*before, *(at[end] for _, end in spans), *after]
        return Encoded([*prefix, *ids, *suffix], starts, ends)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of the ids. Bytes that are no UTF-8 become U+FFFD; an id that no token has stands for nothing."""
        data = b"".join(map(self.token_bytes, self.visible(ids, skip_special_tokens)))
        return self.without_prefix(data).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes that the token adds to the text; the text of a control token; b"" for an id nothing has."""
        table = self._parts.token_bytes
        return table[token_id] if 0 <= token_id < len(table) else b""

    def vocabulary_string(self, token_id: int) -> str:
        """The token as the vocabulary's file writes it; "" for an id nothing has."""
        return self._added_texts.get(token_id) or self._parts.backend.id_to_token(token_id) or ""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is a control token, which skip_special_tokens leaves out."""
        return token_id in self._special_ids

    def visible(self, ids: Iterable[int], skip_special_tokens: bool) -> Iterator[int]:
        """The ids that decoding shows."""
        return (token_id for token_id in ids if not (skip_special_tokens and token_id in self._special_ids))

    def without_prefix(self, data: bytes) -> bytes:
        """The bytes that begin a text, without the space that encoding put there."""
        return data[1:] if self._parts.strip_leading_space and data.startswith(b" ") else data

    def _encode_plain(self, text: str, pieces: list[Piece], *, offsets: bool) -> Iterator[Any]:
        """Encodings of the pieces between added tokens, in order."""
        plain = [piece for piece in pieces if piece.token_id is None]
        first = [text[piece.start : piece.end] for piece in plain if piece.start == 0]
        later = [text[piece.start : piece.end] for piece in plain if piece.start != 0]
        parts = self._parts
        if parts.continuation is parts.backend:
            first, later = first + later, []
        yield from encode_batch(parts.backend, first, offsets)
        yield from encode_batch(parts.continuation, later, offsets)

    def _around(self, ids: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The default prefix and suffix, without what the ids begin and end with already."""
        prefix, suffix = self._parts.prefix, self._parts.suffix
        if prefix and tuple(ids[: len(prefix)]) == prefix:
            prefix = ()
        if suffix and tuple(ids[-len(suffix) :]) == suffix:
            suffix = ()
        return prefix, suffix


def encode_batch(backend: tokenizers.Tokenizer, texts: list[str], offsets: bool) -> list[Any]:
    """The batch calls are the ones that release the GIL, for one text too."""
    if not texts:
        return []
    encode = backend.encode_batch if offsets else backend.encode_batch_fast
    return encode(texts, add_special_tokens=False)


def normalize_input(text: str | Segments, add: bool | None) -> tuple[str, list[tuple[int, int]], bool]:
    """(the whole text, its trusted ranges with neighbours joined, whether to add BOS and EOS)."""
    if isinstance(text, str):
        return text, [(0, len(text))], add is not False
    trusted: list[tuple[int, int]] = []
    position = 0
    for run, parse_special in text:
        end = position + len(run)
        if parse_special and run:
            joined = bool(trusted) and trusted[-1][1] == position
            trusted[-1 if joined else len(trusted) :] = [(trusted[-1][0] if joined else position, end)]
        position = end
    return "".join(run for run, _ in text), trusted, add is True


def byte_positions(text: str) -> Sequence[int]:
    """Character index -> UTF-8 byte offset, for every index from 0 to the length."""
    if text.isascii():
        return range(len(text) + 1)
    widths = (1 if c < "\x80" else 2 if c < "\u0800" else 3 if c < "\U00010000" else 4 for c in text)
    return list(accumulate(widths, initial=0))


def eos_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """eos_token_id of a configuration: an id, a list of ids, or nothing."""
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int) and not isinstance(item, bool) and item >= 0)


def special_tokens(parts: TokenizerParts) -> tuple[SpecialToken, ...]:
    """Roles first (one id may have several), then the other control tokens by id."""
    named = [
        SpecialToken(role, parts.token_bytes[index].decode("utf-8", "replace"), index)
        for role, index in parts.roles.items()
    ]
    with_role = set(parts.roles.values())
    others = [SpecialToken("", t.text, t.id) for t in parts.added if t.special and t.id not in with_role]
    return (*named, *others)
