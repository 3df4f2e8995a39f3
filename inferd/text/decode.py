"""Token ids as text, with the place of each token in it."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from inferd.text.tokenizer import Tokenizer


def decode_with_starts(tokenizer: Tokenizer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of the ids, control tokens included, and the UTF-8 byte offset in it at which each token starts.

    A token that goes on with a character starts where the character does. A character that the last ids leave
    unfinished is not part of the text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts: list[str] = []
    starts: list[int] = []
    position, at_start = 0, True
    for token_id in ids:
        data = tokenizer.token_bytes(token_id)
        if at_start and data:
            at_start, data = False, tokenizer.without_prefix(data)
        pending = decoder.getstate()[0]
        if pending and data and not goes_on(pending, data):
            # The unfinished character will never be whole: it becomes U+FFFD, and this token starts after it.
            text = decoder.decode(b"", final=True)
            decoder.reset()
            texts.append(text)
            position += len(text.encode())
        starts.append(position)
        text = decoder.decode(data)
        texts.append(text)
        position += len(text.encode())
    return "".join(texts), starts


def goes_on(pending: bytes, data: bytes) -> bool:
    """Whether the first byte of `data` can follow the unfinished character `pending`."""
    try:
        codecs.getincrementaldecoder("utf-8")("strict").decode(pending + data[:1])
    except UnicodeDecodeError:
        return False
    return True
