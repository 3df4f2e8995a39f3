"""MatchVocabulary: a model's vocabulary in the form that the matching library works on."""

from __future__ import annotations

from typing import Any

from llguidance import LLTokenizer

from inferd.messages import Vocabulary

NUMBER_BYTES = b"0123456789.eE+-"
# Tokens that may stand inside of a JSON string, by length: their masks are made once, which halves the time of strings
# with bounds (a tenth of it beyond 30 characters), and costs other grammars nothing. Each takes 60 bytes per token.
STRING_SLICES = tuple(rf'[^"\\\x00-\x1F\x7F]{length}' for length in ("{1,10}", "{1,30}", "+"))


class MatchVocabulary:
    """Immutable. vocab_size is the model's; ids beyond the tokenizer's stand for nothing and are never allowed.

    Building it takes up to a second, and holds the interpreter's lock for most of it.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        tokens = vocabulary.token_bytes[:vocab_size]
        tokens += [b""] * (vocab_size - len(tokens))
        self.token_bytes = tokens
        self.eos_token_ids = tuple(token for token in vocabulary.eos_token_ids if token < vocab_size)
        if not self.eos_token_ids:  # the library needs one; the model never draws this one
            self.eos_token_ids, tokens = (vocab_size,), [*tokens, b""]
        special_ids = [token for token in vocabulary.special_token_ids if token < vocab_size]
        # Texts of control tokens, longest first: where one begins another, the longer one is meant.
        special = [(tokens[token].decode("utf-8", "replace"), token) for token in special_ids]
        self.special_texts = sorted(((text, token) for text, token in special if text), key=lambda each: -len(each[0]))
        wrapper = _Wrapper(tokens, self.eos_token_ids[0], special_ids)
        self.library: Any = LLTokenizer(
            wrapper,  # type: ignore[arg-type]  # the attributes are what counts
            n_vocab=len(tokens),
            eos_token=list(self.eos_token_ids),
            slices=list(STRING_SLICES),
        )
        all_but_end = bytearray(b"\xff" * (-(-len(tokens) // 32) * 4))
        clear(all_but_end, self.eos_token_ids)
        self.all_but_end = bytes(all_but_end)
        # Masks for NumberBound, as integers: tokens that go on with a number, that may follow one, and those of the
        # latter that cannot be within a string.
        self.number_tokens = self._mask_of(NUMBER_BYTES)
        self.after_number = self._mask_of(b",]} \t\r\n", *self.eos_token_ids)
        self.no_string = self._mask_of(b"\t\r\n", *self.eos_token_ids)

    def _mask_of(self, first_bytes: bytes, *token_ids: int) -> int:
        """The mask of these tokens, and of those that begin with one of the bytes."""
        mask = bytearray(len(self.all_but_end))
        beginning = (token_id for token_id, text in enumerate(self.token_bytes) if text[:1] and text[0] in first_bytes)
        for token_id in (*beginning, *token_ids):
            mask[token_id // 8] |= 1 << token_id % 8
        return int.from_bytes(mask, "little")


class _Wrapper:
    """What the library reads of a tokenizer. It never has to encode text."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokens: list[bytes], eos_token_id: int, special_token_ids: list[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.special_token_ids = special_token_ids

    def __call__(self, text: str) -> list[int]:
        return []


def clear(mask: bytearray, token_ids: tuple[int, ...]) -> None:
    for token_id in token_ids:
        mask[token_id // 8] &= ~(1 << token_id % 8) & 0xFF
