"""What a checkpoint is, once its headers have been read: frozen values, no tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from inferd.checkpoint.sentence_modules import SentenceModules

COMPARED_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """Where one tensor's bytes are.

    name    as the file has it
    format  f32, f16, bf16, another safetensors dtype in lower case, or a ggml type name in lower case
    shape   Hugging Face order: [out, in] for a linear layer
    """

    name: str
    format: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def same_content(one: TensorRecord, other: TensorRecord) -> bool:
    """Whether two tensors hold the same values in the same form. Reads until the first difference."""
    if (one.format, one.shape, one.nbytes) != (other.format, other.shape, other.nbytes):
        return False
    if (one.file, one.offset) == (other.file, other.offset):
        return True
    with one.file.open("rb") as first, other.file.open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        for start in range(0, one.nbytes, COMPARED_BYTES):
            size = min(COMPARED_BYTES, one.nbytes - start)
            if first.read(size) != second.read(size):
                return False
    return True


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A Hugging Face tokenizer: the path of tokenizer.json (None: the folder has none) and the files beside it."""

    tokenizer_json: Path | None
    tokenizer_config: dict[str, Any] = field(default_factory=dict)
    special_tokens_map: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """A tokenizer as GGUF metadata holds it: the values of tokenizer.ggml.*, ids are indices into `tokens`.

    token_types: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    special_ids: role (bos, eos, eot, eom, unknown, padding, ...) -> id.
    """

    model: str
    pre: str
    tokens: list[str]
    token_types: list[int]
    scores: list[float]
    merges: list[str]
    special_ids: dict[str, int]
    add_bos: bool | None
    add_eos: bool | None
    add_space_prefix: bool | None


TokenizerSource: TypeAlias = TokenizerFiles | GgufVocabulary


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model on disk: every header read and checked, no weight read.

    config is in the form of a Hugging Face config.json (of a GGUF file with the keys gguf_architecture and gguf beside
    it: see gguf_config), chat_templates has "default" first, fingerprint changes with
    the configuration, the tensor index and sampled weight bytes.
    """

    path: Path
    format: Literal["safetensors", "gguf"]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tokenizer: TokenizerSource | None  # None: a GGUF vocabulary that was not read
    chat_templates: dict[str, str]
    tensors: dict[str, TensorRecord]
    fingerprint: str
    sentence: SentenceModules | None = None  # a sentence-transformers folder
