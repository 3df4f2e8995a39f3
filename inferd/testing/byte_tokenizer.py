"""A tokenizer with a token per byte and a few control tokens: every id can be computed by hand."""

from __future__ import annotations

import tokenizers
from tokenizers import models, pre_tokenizers

from inferd.text.parts import AddedToken, TokenizerParts
from inferd.text.token_bytes import byte_alphabet
from inferd.text.tokenizer import Tokenizer

SPECIALS = ("<bos>", "<eos>", "<user>")
BOS, EOS, USER = 256, 257, 258


def byte_tokenizer() -> Tokenizer:
    """Ids 0-255 are bytes, 256 on are SPECIALS; adds nothing to plain text."""
    backend = tokenizers.Tokenizer(models.BPE({char: byte for byte, char in byte_alphabet().items()}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    parts = TokenizerParts(
        backend=backend,
        continuation=backend,
        kind="bpe",
        added=tuple(AddedToken(256 + index, text, special=True) for index, text in enumerate(SPECIALS)),
        token_bytes=[bytes([byte]) for byte in range(256)] + [text.encode() for text in SPECIALS],
        strip_leading_space=False,
        byte_level=True,
        prefix=(),
        suffix=(),
        roles={"bos": BOS, "eos": EOS},
        eos_token_ids=(EOS,),
        fingerprint="bytes",
    )
    return Tokenizer(parts)
