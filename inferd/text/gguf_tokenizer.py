"""A tokenizer from GGUF metadata: byte-level BPE ("gpt2") and SentencePiece BPE with byte fallback ("llama")."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer, models, normalizers

from inferd.checkpoint import GgufVocabulary
from inferd.errors import StartupError
from inferd.text.parts import AddedToken, TokenizerParts
from inferd.text.pre_tokenizers import pre_tokenizer_for
from inferd.text.token_bytes import SPACE_MARK, byte_level_bytes, expresses_all_text, sentencepiece_bytes

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
ROLES = {"bos": "bos", "eos": "eos", "padding": "pad", "unknown": "unk"}
# Files often name one end-of-sequence id only, or mark the end of a turn as ordinary text. These end a turn, a message
# or a document in every format that has them, so each is a control token that ends a generation, whatever its type.
ENDS = frozenset(
    (
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>"),
        *("<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_utterance>", "<turn|>", "<|tool_response>"),
        *("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "[e~[", "<｜end▁of▁sentence｜>"),
    )
)
# A format that has all of the first means something else by the second: the end of a part of a turn, or mere text.
NO_ENDS = (
    ({"<|return|>", "<|call|>"}, "<|end|>"),
    ({"<|return|>", "<|calls|>"}, "<|end|>"),
    ({"<|flush|>", "<|call|>"}, "<|end|>"),
    ({"<|flush|>", "<|calls|>"}, "<|end|>"),
    ({"<|tool_response>"}, "</s>"),
)

logger = logging.getLogger(__name__)


def parts_from_gguf(vocabulary: GgufVocabulary) -> TokenizerParts:
    """StartupError for a tokenizer model or pre-tokenizer that is not supported, or a broken vocabulary."""
    if vocabulary.model == "gpt2":
        return byte_level_parts(vocabulary)
    if vocabulary.model == "llama":
        return sentencepiece_parts(vocabulary)
    raise StartupError(f"GGUF tokenizer model {vocabulary.model[:40]!r} is not supported (gpt2 and llama are)")


def byte_level_parts(vocabulary: GgufVocabulary) -> TokenizerParts:
    if vocabulary.pre in ("", "default"):
        logger.warning("the GGUF file names no pre-tokenizer (tokenizer.ggml.pre): GPT-2's is used, which may be wrong")
    rules = pre_tokenizer_for(vocabulary.pre or "default")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    backend = Tokenizer(
        build_bpe(ids, [tuple(merge.split(" ", 1)) for merge in vocabulary.merges], ignore_merges=rules.ignore_merges)
    )
    backend.pre_tokenizer = rules.build()
    normalizer = rules.normalizer()
    if normalizer is not None:
        backend.normalizer = normalizer
    return assemble(
        vocabulary,
        backend,
        byte_level_bytes(vocabulary.tokens),
        adds_bos=rules.adds_bos,
        strip_leading_space=False,
        byte_level=expresses_all_text(vocabulary.tokens, "byte-level"),
    )


def sentencepiece_parts(vocabulary: GgufVocabulary) -> TokenizerParts:
    if len(vocabulary.scores) != len(vocabulary.tokens):
        raise StartupError("GGUF tokenizer model 'llama' needs one score per token (tokenizer.ggml.scores)")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.tokens[vocabulary.special_ids.get("unknown", 0)]
    byte_fallback = expresses_all_text(vocabulary.tokens, "sentencepiece")
    backend = Tokenizer(
        build_bpe(
            ids,
            merges_from_scores(vocabulary),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    prefix = vocabulary.add_space_prefix is not False
    replace = normalizers.Replace(" ", SPACE_MARK)
    steps = [normalizers.Prepend(SPACE_MARK), replace] if prefix else [replace]
    backend.normalizer = normalizers.Sequence(steps)
    return assemble(
        vocabulary,
        backend,
        sentencepiece_bytes(vocabulary.tokens),
        adds_bos=True,
        strip_leading_space=prefix,
        byte_level=byte_fallback,
    )


def build_bpe(ids: dict[str, int], merges: list[Any], **options: Any) -> models.BPE:
    """StartupError when a merge names or makes an entry that the vocabulary lacks."""
    try:
        return models.BPE(ids, merges, **options)
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise StartupError(f"GGUF tokenizer: vocabulary and merges do not fit each other ({reason})") from None


def merges_from_scores(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """The merges that give SentencePiece's result: every split of an entry into two entries, best score first.

    Ties keep vocabulary order, and within an entry the order of its halves' ids. No control token is made by merging.
    """
    types = vocabulary.token_types or [NORMAL] * len(vocabulary.tokens)
    ids = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, types, strict=True))
        if kind in (NORMAL, UNUSED)
    }
    ranked = []
    for token, index in ids.items():
        halves = [
            (ids[token[:cut]], ids[token[cut:]])
            for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids
        ]
        ranked += [(-vocabulary.scores[index], index, left, right) for left, right in halves]
    ranked.sort()
    return [(vocabulary.tokens[left], vocabulary.tokens[right]) for _, _, left, right in ranked]


def end_ids(vocabulary: GgufVocabulary) -> dict[int, None]:
    """Ids that end a generation: those the file says, then those known by their text."""
    ends = {vocabulary.special_ids[role]: None for role in ("eos", "eot", "eom") if role in vocabulary.special_ids}
    known = {token: index for index, token in enumerate(vocabulary.tokens) if token in ENDS}
    for others, token in NO_ENDS:
        if known.keys() >= others:
            known.pop(token, None)
    return ends | dict.fromkeys(known.values())


def added_tokens(vocabulary: GgufVocabulary, ends: Iterable[int]) -> list[AddedToken]:
    """Control and user-defined tokens; those that start or end a text are control whatever their type says."""
    control = {*ends, vocabulary.special_ids.get("bos")}
    added = []
    for index, kind in enumerate(vocabulary.token_types or [NORMAL] * len(vocabulary.tokens)):
        special = kind in (CONTROL, UNKNOWN) or index in control
        if special or kind == USER_DEFINED:
            added.append(AddedToken(index, vocabulary.tokens[index], special))
    return added


def assemble(
    vocabulary: GgufVocabulary,
    backend: Tokenizer,
    token_bytes: list[bytes],
    *,
    adds_bos: bool,
    strip_leading_space: bool,
    byte_level: bool,
) -> TokenizerParts:
    ends = end_ids(vocabulary)
    added = added_tokens(vocabulary, ends)
    for token in added:
        token_bytes[token.id] = token.text.encode()  # these are meant as written
    bos, eos = vocabulary.special_ids.get("bos"), vocabulary.special_ids.get("eos")
    wants_bos = adds_bos if vocabulary.add_bos is None else vocabulary.add_bos
    return TokenizerParts(
        backend=backend,
        continuation=backend,
        kind="bpe",
        added=tuple(added),
        token_bytes=token_bytes,
        strip_leading_space=strip_leading_space,
        byte_level=byte_level,
        prefix=(bos,) if wants_bos and bos is not None else (),
        suffix=(eos,) if vocabulary.add_eos and eos is not None else (),
        roles={ROLES[role]: index for role, index in vocabulary.special_ids.items() if role in ROLES},
        eos_token_ids=tuple(ends),
        fingerprint=vocabulary_fingerprint(vocabulary),
    )


def vocabulary_fingerprint(vocabulary: GgufVocabulary) -> str:
    digest = hashlib.sha256()
    flags = (
        vocabulary.add_bos,
        vocabulary.add_eos,
        vocabulary.add_space_prefix,
        sorted(vocabulary.special_ids.items()),
    )
    digest.update(repr((vocabulary.model, vocabulary.pre, flags, vocabulary.token_types, vocabulary.scores)).encode())
    for strings in (vocabulary.tokens, vocabulary.merges):
        digest.update("\0".join(strings).encode() + b"\1")
    return digest.hexdigest()
