"""The bytes that vocabulary entries stand for.

Byte-level vocabularies write each byte as one printable character: bytes that are printable in Latin-1 as themselves,
the other 68 as U+0100 onwards (GPT-2's published scheme). SentencePiece vocabularies write a space as U+2581 and single
bytes as <0xNN>. Each function takes a vocabulary and returns the bytes of every entry.
"""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Coding: TypeAlias = Literal["byte-level", "sentencepiece", "wordpiece", "plain"]

SPACE_MARK = "▁"
UTF_8_BYTES = frozenset(range(0xF5)) - {0xC0, 0xC1}
SEPARATOR = "\uffff"
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """byte -> the character that stands for it in byte-level vocabularies."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


# Code point of an alphabet character -> code point of its byte; others are mapped out of Latin-1, to be noticed.
FROM_ALPHABET = {ord(character): byte for byte, character in byte_alphabet().items()}
NOT_IN_ALPHABET = {code: 0xFFFF for code in range(256) if code not in FROM_ALPHABET}
DECODE_TABLE = FROM_ALPHABET | NOT_IN_ALPHABET


def byte_level_bytes(tokens: list[str]) -> list[bytes]:
    """Bytes of byte-level entries; one with characters outside the alphabet stands for its own UTF-8."""
    # Translated in one piece: 10^5 calls would be most of the time it takes to build a tokenizer.
    translated = SEPARATOR.join(tokens).translate(DECODE_TABLE).split(SEPARATOR)
    if len(translated) != len(tokens):
        translated = [token.translate(DECODE_TABLE) for token in tokens]
    return [latin_1_or_utf_8(text, token) for text, token in zip(translated, tokens, strict=True)]


def latin_1_or_utf_8(text: str, token: str) -> bytes:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        return token.encode("utf-8")


def sentencepiece_bytes(tokens: list[str]) -> list[bytes]:
    """Bytes of SentencePiece entries."""
    matches = map(BYTE_TOKEN.fullmatch, tokens)
    return [
        bytes([int(match[1], 16)]) if match else token.replace(SPACE_MARK, " ").encode("utf-8")
        for match, token in zip(matches, tokens, strict=True)
    ]


def wordpiece_bytes(tokens: list[str]) -> list[bytes]:
    """Bytes of WordPiece entries: a space sets words apart (the original spacing is lost), continuations have none."""
    return [(token[2:] if token.startswith("##") else f" {token}").encode("utf-8") for token in tokens]


def plain_bytes(tokens: list[str]) -> list[bytes]:
    """Bytes of entries that stand for themselves."""
    return [token.encode("utf-8") for token in tokens]


def expresses_all_text(tokens: list[str], coding: Coding) -> bool:
    """Whether every byte that UTF-8 uses has an entry of its own, so that no text loses anything."""
    if coding == "byte-level":
        alphabet = byte_alphabet()
        return {alphabet[byte] for byte in UTF_8_BYTES} <= set(tokens)
    return coding == "sentencepiece" and {f"<0x{byte:02X}>" for byte in UTF_8_BYTES} <= set(tokens)
