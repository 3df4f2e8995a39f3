"""ByteTokenizer: a token per byte, and a few control tokens. Everything about it can be computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

SPECIALS = ("<bos>", "<eos>", "<user>")
BOS, EOS, USER = 256, 257, 258
Segments = Sequence[tuple[str, bool]]


class ByteTokenizer:
    """Ids 0-255 are bytes, 256 on are SPECIALS. Has the interface of inferd.text.tokenizer.Tokenizer."""

    kind = "bpe"
    fingerprint = "bytes"
    vocab_size = 256 + len(SPECIALS)
    eos_token_ids = (EOS,)
    special_tokens = (("bos", "<bos>", BOS), ("eos", "<eos>", EOS), ("", "<user>", USER))
    adds_bos = False
    adds_eos = False
    byte_level = True

    def encode(self, text: str | Segments, add_special_tokens: bool | None = None) -> list[int]:
        return self.encode_with_offsets(text, add_special_tokens)[0]

    def encode_with_offsets(
        self, text: str | Segments, add_special_tokens: bool | None = None
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Offsets are of the UTF-8 bytes of the whole text."""
        ids: list[int] = [BOS] if add_special_tokens else []
        offsets = [(0, 0)] * len(ids)
        position = 0
        for run, parse_special in [(text, True)] if isinstance(text, str) else text:
            rest = run.encode()
            while rest:
                special = next((s for s in SPECIALS if parse_special and rest.startswith(s.encode())), None)
                size = len(special) if special else 1
                ids.append(256 + SPECIALS.index(special) if special else rest[0])
                offsets.append((position, position + size))
                position, rest = position + size, rest[size:]
        return ids, offsets

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        kept = [token_id for token_id in ids if token_id < 256 or not skip_special_tokens]
        return b"".join(map(self.token_bytes, kept)).decode(errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else SPECIALS[token_id - 256].encode()
