"""A .gguf file, or the parts of a split one, as a Checkpoint."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from inferd.checkpoint.fingerprint import fingerprint
from inferd.checkpoint.gguf_config import gguf_config, gguf_generation_config
from inferd.checkpoint.gguf_header import GgufHeader, GgufTensor, read_gguf_header
from inferd.checkpoint.gguf_metadata import Metadata
from inferd.checkpoint.records import Checkpoint, GgufVocabulary, TensorRecord
from inferd.errors import StartupError

SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.ASCII | re.IGNORECASE)
TEMPLATE_KEY = "tokenizer.chat_template."
ROPE_FACTORS = "rope_freqs.weight"
TOKEN_ID_KEY = re.compile(r"tokenizer\.ggml\.([a-z_]+)_token_id")


def split_siblings(path: Path) -> list[Path]:
    """All parts of a split model in order, given any of them; [path] for a file that is no part.

    StartupError for a name that no part can have."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    number, count = int(match[2]), int(match[3])
    if not 1 <= number <= count:
        raise StartupError(f"{path}: its name says part {number} of {count}, which cannot be")
    return [path.with_name(f"{match[1]}-{part:05}-of-{match[3]}{path.suffix}") for part in range(1, count + 1)]


def open_gguf(path: Path, with_vocabulary: bool) -> Checkpoint:
    """Read the header of every part. StartupError with one line when a part is missing, corrupt or not supported."""
    headers = read_parts(split_siblings(path), with_vocabulary)
    metadata = Metadata(headers[0].path, headers[0].metadata)
    by_name: dict[str, tuple[Path, GgufTensor]] = {}
    for header in headers:
        for tensor in header.tensors:
            if tensor.name in by_name:
                raise StartupError(f"{header.path}: tensor {tensor.name[:80]!r} is in another part already")
            by_name[tensor.name] = (header.path, tensor)
    factors = read_rope_factors(*by_name.pop(ROPE_FACTORS)) if ROPE_FACTORS in by_name else []
    config = gguf_config(metadata, set(by_name), embedding_rows(metadata, by_name), factors)
    tensors = {
        name: TensorRecord(name, tensor.format, tensor.dimensions[::-1], file, tensor.offset, tensor.nbytes)
        for name, (file, tensor) in by_name.items()
    }
    return Checkpoint(
        path=path,
        format="gguf",
        config=config,
        generation_config=gguf_generation_config(metadata),
        tokenizer=read_vocabulary(metadata) if with_vocabulary else None,
        chat_templates=read_chat_templates(metadata),
        tensors=tensors,
        fingerprint=fingerprint(config, tensors),
    )


def read_parts(paths: list[Path], with_vocabulary: bool) -> list[GgufHeader]:
    """The headers of all parts; each must say that it is the part its name says."""
    for path in paths:
        if not path.is_file():
            raise StartupError(f"{path}: part {paths.index(path) + 1} of {len(paths)} is missing")
    headers = [read_gguf_header(path, with_vocabulary) for path in paths]
    for number, header in enumerate(headers):
        metadata = Metadata(header.path, header.metadata)
        count = metadata.maybe_size("split.count") or 1
        if count != len(paths) or (metadata.maybe_size("split.no") or 0) != number:
            raise StartupError(
                f"{header.path}: says it is part {(metadata.maybe_size('split.no') or 0) + 1} of {count}, "
                f"but is used as part {number + 1} of {len(paths)}"
            )
    expected = Metadata(headers[0].path, headers[0].metadata).maybe_size("split.tensors.count")
    found = sum(len(header.tensors) for header in headers)
    if expected is not None and expected != found:
        raise StartupError(f"{headers[0].path}: {expected} tensors announced, the parts hold {found}")
    return headers


def embedding_rows(metadata: Metadata, by_name: dict[str, tuple[Path, GgufTensor]]) -> int:
    if "token_embd.weight" not in by_name:
        raise StartupError(f"{metadata.path}: no tensor token_embd.weight")
    dimensions = by_name["token_embd.weight"][1].dimensions
    if len(dimensions) != 2:
        raise StartupError(f"{metadata.path}: token_embd.weight has shape {list(dimensions)}, two dimensions expected")
    return dimensions[1]


def read_rope_factors(file: Path, tensor: GgufTensor) -> list[float]:
    """The divisors of the rotary frequencies, one float32 per pair of channels."""
    if tensor.format != "f32" or len(tensor.dimensions) != 1 or tensor.nbytes > 4096:
        raise StartupError(f"{file}: {ROPE_FACTORS} is {tensor.format} {list(tensor.dimensions)}, expected float32")
    with file.open("rb") as data:
        data.seek(tensor.offset)
        factors = [float(f"{value:.7g}") for (value,) in struct.iter_unpack("<f", data.read(tensor.nbytes))]
    if not all(0 < factor < float("inf") for factor in factors):
        raise StartupError(f"{file}: {ROPE_FACTORS} holds values that are no divisors")
    return [] if all(factor == 1.0 for factor in factors) else factors


def read_vocabulary(metadata: Metadata) -> GgufVocabulary:
    """tokenizer.ggml.*, checked: one type and score per token, ids inside the vocabulary."""
    tokens = metadata.array("tokenizer.ggml.tokens", str)
    model = metadata.maybe_string("tokenizer.ggml.model")
    if not tokens or model is None:
        raise StartupError(f"{metadata.path}: no tokenizer (tokenizer.ggml.model and .tokens)")
    types = metadata.array("tokenizer.ggml.token_type", int)
    scores = metadata.array("tokenizer.ggml.scores", float)
    for name, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise StartupError(f"{metadata.path}: {len(values)} entries in {name}, {len(tokens)} tokens")
    special_ids = {}
    for key in metadata.values:
        match = TOKEN_ID_KEY.fullmatch(key)
        token_id = metadata.maybe_size(key) if match else None
        if match is None or token_id is None:
            continue
        if token_id >= len(tokens):
            raise StartupError(f"{metadata.path}: {key} is {token_id}, the vocabulary holds {len(tokens)} tokens")
        special_ids[match[1]] = token_id
    return GgufVocabulary(
        model=model,
        pre=metadata.maybe_string("tokenizer.ggml.pre") or "",
        tokens=tokens,
        token_types=types,
        scores=scores,
        merges=metadata.array("tokenizer.ggml.merges", str),
        special_ids=special_ids,
        add_bos=metadata.maybe_bool("tokenizer.ggml.add_bos_token"),
        add_eos=metadata.maybe_bool("tokenizer.ggml.add_eos_token"),
        add_space_prefix=metadata.maybe_bool("tokenizer.ggml.add_space_prefix"),
    )


def read_chat_templates(metadata: Metadata) -> dict[str, str]:
    templates = {}
    default = metadata.maybe_string("tokenizer.chat_template")
    if default is not None:
        templates["default"] = default
    # tokenizer.chat_templates lists the names, but some writers leave it out.
    for key in sorted(key for key in metadata.values if key.startswith(TEMPLATE_KEY)):
        templates.setdefault(key.removeprefix(TEMPLATE_KEY), str(metadata.maybe_string(key)))
    return templates
