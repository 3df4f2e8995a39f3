"""A tokenizer from tokenizer.json and the files beside it, taken apart with the tokenizers library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from tokenizers import AddedToken as LibraryToken
from tokenizers import Tokenizer, models

from inferd.checkpoint import TokenizerFiles
from inferd.checkpoint.json_file import parse_json_object, read_bounded
from inferd.errors import StartupError
from inferd.text.parts import AddedToken, Kind, TokenizerParts
from inferd.text.token_bytes import (
    SPACE_MARK,
    Coding,
    byte_level_bytes,
    expresses_all_text,
    plain_bytes,
    sentencepiece_bytes,
    wordpiece_bytes,
)

KINDS: dict[str, Kind] = {"BPE": "bpe", "Unigram": "unigram", "WordPiece": "wordpiece", "WordLevel": "wordlevel"}
BYTES_OF: dict[Coding, Callable[[list[str]], list[bytes]]] = {
    "byte-level": byte_level_bytes,
    "sentencepiece": sentencepiece_bytes,
    "wordpiece": wordpiece_bytes,
    "plain": plain_bytes,
}
ROLES = ("bos", "eos", "pad", "unk")
PROBE = "a"


def parts_from_files(files: TokenizerFiles) -> TokenizerParts:
    """StartupError when tokenizer.json is missing, malformed or of a kind that cannot be streamed."""
    if files.tokenizer_json is None:
        raise StartupError(
            "the checkpoint has no tokenizer.json; convert its tokenizer with transformers' save_pretrained"
        )
    data = read_bounded(files.tokenizer_json)
    where = str(files.tokenizer_json)
    description = parse_json_object(data, where)
    original = load(data, where)
    original.no_padding()
    original.no_truncation()
    kind = KINDS.get(str((description.get("model") or {}).get("type") or "BPE"))
    if kind is None:
        raise StartupError(f"{where}: tokenizer model {description['model']['type']!r} is not supported")
    found = sorted(original.get_added_tokens_decoder().items())
    added = tuple(
        AddedToken(index, token.content, token.special, token.lstrip, token.rstrip, token.single_word)
        for index, token in found
    )
    coding = byte_coding(description, where)
    inner = {index for index, token in found if is_found_after_normalizing(original, token)}
    texts = {
        index: original.normalizer.normalize_str(token.content) if index in inner else token.content
        for index, token in found
    }
    keep = partial(keep_added, found=found, inner=inner)
    backend = plain_backend(original, description, added)
    prefix, suffix = template(original)
    roles = role_ids(files, {token.text: token.id for token in added} | original.get_vocab(with_added_tokens=False))
    prefix, suffix = configured(files.tokenizer_config, roles, prefix, suffix)
    tokens = tokens_by_id(original)
    continuation = continuation_of(backend, description)
    keep(backend)
    if continuation is not backend:
        keep(continuation)
    return TokenizerParts(
        backend=backend,
        continuation=continuation,
        kind=kind,
        added=tuple(token for token in added if token.id not in inner),
        token_bytes=bytes_by_id(tokens, texts, coding),
        strip_leading_space=coding == "wordpiece" or strips_leading_space(description),
        byte_level=expresses_all_text(tokens, coding),
        prefix=prefix,
        suffix=suffix,
        roles=roles,
        eos_token_ids=(roles["eos"],) if "eos" in roles else (),
        fingerprint=hashlib.sha256(data + repr((sorted(roles.items()), prefix, suffix)).encode()).hexdigest(),
    )


def load(data: bytes, where: str) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises plain Exception
        reason = " ".join(str(error).split())[:200]
        raise StartupError(f"{where}: not a tokenizer ({reason})") from None


def steps_of(step: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, sequences flattened."""
    if not isinstance(step, dict):
        return []
    nested = step.get("normalizers") or step.get("pretokenizers") or step.get("decoders")
    return [inner for part in nested for inner in steps_of(part)] if isinstance(nested, list) else [step]


def byte_coding(description: dict[str, Any], where: str) -> Coding:
    """How vocabulary entries stand for bytes, told from the decoder. StartupError for one nobody can undo by token."""
    decoders = {step.get("type") for step in steps_of(description.get("decoder"))}
    pre_tokenizers = {step.get("type") for step in steps_of(description.get("pre_tokenizer"))}
    if "ByteLevel" in decoders or (not decoders and "ByteLevel" in pre_tokenizers):
        return "byte-level"
    if decoders & {"ByteFallback", "Metaspace", "Replace"}:
        return "sentencepiece"
    if "WordPiece" in decoders:
        return "wordpiece"
    if not decoders:
        return "plain"
    raise StartupError(f"{where}: decoder {'/'.join(sorted(map(str, decoders)))} is not supported")


def strips_leading_space(description: dict[str, Any]) -> bool:
    """Whether decoding drops the space that encoding put before the first word."""
    for step in steps_of(description.get("decoder")):
        if step.get("type") == "Strip" and step.get("content") == " " and step.get("start"):
            return True
        if step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never":
            return True
    return False


def plain_backend(original: Tokenizer, description: dict[str, Any], added: tuple[AddedToken, ...]) -> Tokenizer:
    """The same tokenizer without added tokens, truncation, padding and post-processing."""
    model: Any = original.model
    if isinstance(model, models.Unigram):
        model = unigram_without(description["model"], {token.text for token in added if token.special})
    backend = Tokenizer(model)
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        value = getattr(original, part)
        if value is not None:
            setattr(backend, part, value)
    return backend


def is_found_after_normalizing(original: Tokenizer, token: Any) -> bool:
    """Whether a token is looked for in the normalized text, and there in its normalized form: the library's business.

    Control tokens are not: whether they count is decided on the text as it was given."""
    if original.normalizer is None or not token.normalized or token.special:
        return False
    return bool(original.normalizer.normalize_str(token.content) != token.content)


def keep_added(backend: Tokenizer, *, found: list[tuple[int, Any]], inner: set[int]) -> None:
    """Let the backend find the tokens `inner` by itself. The library numbers them in turn, so the others are stood in
    for by strings that no text holds."""
    if not inner:
        return
    for index, token in found:
        if index in inner:
            backend.add_tokens([token])
        elif backend.id_to_token(index) is None:
            backend.add_tokens([LibraryToken(f"\uffff{index}", normalized=False)])
    assert all(backend.token_to_id(token.content) == index for index, token in found if index in inner)


def unigram_without(model: dict[str, Any], special: set[str]) -> models.Unigram:
    """A Unigram model chooses among all its entries, so control tokens get strings that no text holds."""
    unknown = model.get("unk_id")
    entries = [
        (f"\uffff{index}", score) if piece in special and index != unknown else (piece, score)
        for index, (piece, score) in enumerate(model["vocab"])
    ]
    return models.Unigram(entries, unknown, bool(model.get("byte_fallback")))


def continuation_of(backend: Tokenizer, description: dict[str, Any]) -> Tokenizer:
    """The backend for text that does not begin the prompt: Metaspace "first" prefixes the beginning only."""
    steps = steps_of(description.get("pre_tokenizer"))
    if not any(step.get("type") == "Metaspace" and step.get("prepend_scheme") == "first" for step in steps):
        return backend
    for step in steps:
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
    shell = {"version": "1.0", "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "added_tokens": []}
    shell["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    continuation = Tokenizer(backend.model)
    continuation.pre_tokenizer = Tokenizer.from_str(json.dumps(shell)).pre_tokenizer
    if backend.normalizer is not None:
        continuation.normalizer = backend.normalizer
    return continuation


def template(original: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What post-processing puts before and after a text."""
    bare = original.encode(PROBE, add_special_tokens=False).ids
    full = original.encode(PROBE, add_special_tokens=True).ids
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start]), tuple(full[start + len(bare) :])
    return (), ()


def configured(
    config: dict[str, Any], roles: dict[str, int], prefix: tuple[int, ...], suffix: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """add_bos_token and add_eos_token of tokenizer_config.json, where they are set, win over the template."""
    bos, eos = roles.get("bos"), roles.get("eos")
    if bos is not None and isinstance(config.get("add_bos_token"), bool):
        prefix = (bos,) if config["add_bos_token"] else tuple(token for token in prefix if token != bos)
    if eos is not None and isinstance(config.get("add_eos_token"), bool):
        suffix = (eos,) if config["add_eos_token"] else tuple(token for token in suffix if token != eos)
    return prefix, suffix


def role_ids(files: TokenizerFiles, ids: dict[str, int]) -> dict[str, int]:
    """Roles by id, from tokenizer_config.json, else special_tokens_map.json."""
    roles = {}
    for role in ROLES:
        value = files.tokenizer_config.get(f"{role}_token") or files.special_tokens_map.get(f"{role}_token")
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str) and text in ids:
            roles[role] = ids[text]
    return roles


def tokens_by_id(original: Tokenizer) -> list[str]:
    vocabulary = original.get_vocab(with_added_tokens=False)
    tokens = [""] * (max(vocabulary.values(), default=-1) + 1)
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def bytes_by_id(tokens: list[str], added: dict[int, str], coding: Coding) -> list[bytes]:
    result = BYTES_OF[coding](tokens)
    result += [b""] * (max(added, default=-1) + 1 - len(result))
    for index, text in added.items():
        # The decoder works on them like on any other: a space mark in them is a space.
        result[index] = (text.replace(SPACE_MARK, " ") if coding == "sentencepiece" else text).encode()
    return result
