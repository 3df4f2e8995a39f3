"""A tokenizer may have tokens that the model has no embedding for (Gemma 3: a marker for images). For the model they do
not exist: their strings are ordinary text, and their ids are outside the vocabulary."""

from __future__ import annotations

import logging
from dataclasses import replace

from inferd.checkpoint import GgufVocabulary
from inferd.errors import StartupError
from inferd.text.gguf_tokenizer import CONTROL, UNUSED, USER_DEFINED
from inferd.text.parts import TokenizerParts

logger = logging.getLogger(__name__)


def within_rows(vocabulary: GgufVocabulary, rows: int) -> GgufVocabulary:
    """The first `rows` tokens. Raises StartupError when one that is left out could be part of any text."""
    count = len(vocabulary.tokens)
    if count <= rows:
        return vocabulary
    if not set(vocabulary.token_types[rows:] or [0]) <= {CONTROL, USER_DEFINED, UNUSED}:
        raise too_large(count, rows)
    leave_out(vocabulary.tokens[rows:], count, rows)
    return replace(
        vocabulary,
        tokens=vocabulary.tokens[:rows],
        token_types=vocabulary.token_types[:rows],
        scores=vocabulary.scores[:rows],
        special_ids={role: index for role, index in vocabulary.special_ids.items() if index < rows},
    )


def parts_within_rows(parts: TokenizerParts, rows: int) -> TokenizerParts:
    """The parts without added tokens from id `rows` on. Raises StartupError when text could still become such an id."""
    count = len(parts.token_bytes)
    if count <= rows:
        return parts
    beyond = [token.text for token in parts.added if token.id >= rows]
    around = (*parts.prefix, *parts.suffix)
    reachable = any(parts.backend.id_to_token(index) is not None for index in range(rows, count))
    if reachable or max(around, default=0) >= rows:
        raise too_large(count, rows)
    leave_out(beyond, count, rows)
    return replace(
        parts,
        added=tuple(token for token in parts.added if token.id < rows),
        token_bytes=parts.token_bytes[:rows],
        roles={role: index for role, index in parts.roles.items() if index < rows},
        eos_token_ids=tuple(index for index in parts.eos_token_ids if index < rows),
    )


def too_large(count: int, rows: int) -> StartupError:
    return StartupError(f"the tokenizer has {count} tokens, the embedding {rows} rows")


def leave_out(texts: list[str], count: int, rows: int) -> None:
    logger.warning(
        "the tokenizer has %d tokens, the embedding %d rows: %.60s is ordinary text", count, rows, ", ".join(texts)
    )
