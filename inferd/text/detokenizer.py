"""Token ids to text as they come, never ending inside a character."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

from inferd.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of one growing sequence. All that was pushed, then flushed, joins to decode() of all ids.

    prompt_tail   the last tokens before the first pushed one (16 suffice); empty when nothing precedes. Their text is
                  not returned, but a character they leave unfinished is, once it is complete.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_tail: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._at_start = True
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.push(prompt_tail)

    def push(self, ids: Iterable[int]) -> str:
        """The text that `ids` complete: O(ids). Bytes that cannot become a character any more come as U+FFFD."""
        tokenizer = self._tokenizer
        data = b"".join(map(tokenizer.token_bytes, tokenizer.visible(ids, self._skip_special_tokens)))
        if self._at_start and data:
            self._at_start = False
            data = tokenizer.without_prefix(data)
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left when no more tokens come: U+FFFD for an unfinished character, or nothing."""
        return self._decoder.decode(b"", final=True)
