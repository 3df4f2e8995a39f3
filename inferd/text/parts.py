"""What every kind of tokenizer is reduced to before it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import tokenizers

Kind = Literal["bpe", "unigram", "wordpiece", "wordlevel"]


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A string that becomes one id before the model sees the text.

    special      a control token: honoured in trusted text only
    lstrip       also takes the white space before it; rstrip: after it
    single_word  only where no word character touches it
    """

    id: int
    text: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerParts:
    """A tokenizer taken apart.

    backend        normalizer, pre-tokenizer and model; knows no added tokens and adds no BOS or EOS
    continuation   the same for text that does not begin the prompt (differs where only the first word gets a prefix)
    token_bytes    id -> the bytes it stands for; empty for ids that stand for nothing
    prefix, suffix what the tokenizer puts around plain text by default
    roles          bos, eos, pad, unk -> id
    """

    backend: tokenizers.Tokenizer
    continuation: tokenizers.Tokenizer
    kind: Kind
    added: tuple[AddedToken, ...]
    token_bytes: list[bytes]
    strip_leading_space: bool
    byte_level: bool
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    roles: dict[str, int]
    eos_token_ids: tuple[int, ...]
    fingerprint: str
