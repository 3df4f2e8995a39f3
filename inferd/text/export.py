"""A checkpoint's tokenizer as files, for clients that tokenize by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping

import tokenizers
from tokenizers import decoders, processors

from inferd.checkpoint import GgufVocabulary
from inferd.checkpoint.records import TokenizerFiles, TokenizerSource
from inferd.text.parts import TokenizerParts
from inferd.text.token_bytes import SPACE_MARK

SIBLINGS = ("tokenizer_config.json", "special_tokens_map.json")


def tokenizer_files(source: TokenizerSource, parts: TokenizerParts) -> dict[str, bytes]:
    """File name -> content: the checkpoint's own files, or for GGUF an equivalent tokenizer.json and its config.

    Raises OSError for files that have gone. Costs up to a second for a large vocabulary.
    """
    if isinstance(source, TokenizerFiles):
        assert source.tokenizer_json is not None  # the tokenizer was made of it
        siblings = [source.tokenizer_json.with_name(name) for name in SIBLINGS]
        return {path.name: path.read_bytes() for path in (source.tokenizer_json, *siblings) if path.is_file()}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **role_texts(source.tokens, parts.roles)}
    return {
        "tokenizer.json": export_tokenizer(source, parts).encode(),
        "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2).encode(),
    }


def role_texts(tokens: list[str], roles: Mapping[str, int]) -> dict[str, str]:
    return {f"{role}_token": tokens[index] for role, index in roles.items()}


def export_tokenizer(vocabulary: GgufVocabulary, parts: TokenizerParts) -> str:
    """A tokenizer.json that gives the ids that ours gives."""
    whole = tokenizers.Tokenizer.from_str(parts.backend.to_str())
    for added in parts.added:
        token = tokenizers.AddedToken(
            added.text,
            special=added.special,
            lstrip=added.lstrip,
            rstrip=added.rstrip,
            single_word=added.single_word,
            normalized=False,
        )
        (whole.add_special_tokens if added.special else whole.add_tokens)([token])
    if vocabulary.model == "gpt2":
        whole.decoder = decoders.ByteLevel()
    else:
        steps = [decoders.Replace(SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
        whole.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if parts.strip_leading_space else steps)
    around = (*parts.prefix, *parts.suffix)
    if around:
        pieces = [*(vocabulary.tokens[index] for index in parts.prefix), "$A"]
        pieces += [vocabulary.tokens[index] for index in parts.suffix]
        whole.post_processor = processors.TemplateProcessing(
            single=pieces, special_tokens=[(vocabulary.tokens[index], index) for index in dict.fromkeys(around)]
        )
    exported: str = whole.to_str()
    return exported
