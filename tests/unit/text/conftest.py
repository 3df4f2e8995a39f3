"""Small vocabularies of every supported shape, made with the tokenizers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from inferd.checkpoint import Checkpoint, GgufVocabulary, TokenizerFiles
from inferd.text.token_bytes import byte_alphabet
from inferd.text.tokenizer import Tokenizer

CORPUS = [
    "the cat sat on the mat, the cat's hat 1234 times",
    "日本語のテキスト日本語 été déjà",
    "def f(x):\n    return x",
] * 3
CONTROL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def as_checkpoint(tokenizer: Any, **configs: Any) -> Checkpoint:
    return Checkpoint(
        path=Path("model"),
        format="safetensors",
        config=configs.get("config", {}),
        generation_config=configs.get("generation_config", {}),
        tokenizer=tokenizer,
        chat_templates={},
        tensors={},
        fingerprint="",
    )


def byte_level_library() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(byte_alphabet().values())
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=alphabet, special_tokens=CONTROL, show_progress=False, min_frequency=1
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<|wide|>", rstrip=True, lstrip=True, normalized=False)])
    return tokenizer


def sentencepiece_library(scheme: str) -> tokenizers.Tokenizer:
    """A Llama-2-like tokenizer: `legacy` prefixes each stretch in the normalizer, `first` the beginning only."""
    alphabet = [*sorted(set("".join(CORPUS)) - {" "}), "▁"]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["▁t", "th", "▁th", "▁the", "he", "▁c", "at", "▁cat", "日本", "▁▁"]
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *byte_tokens, *alphabet, *words])}
    pairs = ["▁ t", "t h", "▁t h", "▁th e", "h e", "▁ c", "a t", "▁c at", "日 本", "▁ ▁"]
    merges = [tuple(pair.split(" ")) for pair in pairs]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def unigram_library() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces += [(character, -5.0) for character in sorted(set("".join(CORPUS) + "</>s▁") - {" "})]
    pieces += [("▁the", -1.0), ("▁cat", -1.5)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


LIBRARIES: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level_library,
    "legacy": lambda: sentencepiece_library("legacy"),
    "first": lambda: sentencepiece_library("first"),
    "unigram": unigram_library,
}


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """A library tokenizer as ours, through tokenizer.json."""

    def through_files(library: tokenizers.Tokenizer, tokenizer_config: dict[str, Any] | None = None, **configs: Any):
        path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
        path.write_text(library.to_str(), encoding="utf-8")
        return Tokenizer.from_checkpoint(as_checkpoint(TokenizerFiles(path, tokenizer_config or {}), **configs))

    return through_files


@pytest.fixture(scope="session")
def libraries() -> dict[str, tokenizers.Tokenizer]:
    return {name: make() for name, make in LIBRARIES.items()}


@pytest.fixture(scope="session")
def ours(libraries: dict[str, tokenizers.Tokenizer], load: Callable[..., Tokenizer]) -> dict[str, Tokenizer]:
    """The same tokenizers as the product loads them, and two from GGUF metadata."""
    result = {name: load(library) for name, library in libraries.items()}
    result["gguf-bpe"] = from_gguf(gguf_byte_level(libraries["byte-level"]))
    result["gguf-spm"] = from_gguf(gguf_sentencepiece(libraries["legacy"]))
    return result


@pytest.fixture(scope="session")
def gguf_vocabulary(libraries: dict[str, tokenizers.Tokenizer]) -> GgufVocabulary:
    """The byte-level tokenizer in GGUF's form."""
    return gguf_byte_level(libraries["byte-level"])


def from_gguf(vocabulary: GgufVocabulary) -> Tokenizer:
    return Tokenizer.from_checkpoint(as_checkpoint(vocabulary))


def gguf_byte_level(library: tokenizers.Tokenizer) -> GgufVocabulary:
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    types = [3 if token in CONTROL else 1 for token in tokens]
    tokens.append("<tool>")
    types.append(4)
    merges = [" ".join(merge) for merge in model["merges"]]
    roles = {"bos": 0, "eos": 1, "padding": 2}
    return GgufVocabulary("gpt2", "gpt-2", tokens, types, [], merges, roles, None, None, None)


def gguf_sentencepiece(library: tokenizers.Tokenizer) -> GgufVocabulary:
    """Scores fall with the merge's rank, as SentencePiece's trainer gives them."""
    model = json.loads(library.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    ranks = {left + right: rank for rank, (left, right) in enumerate(model["merges"])}
    scores = [float(-ranks.get(token, 1000)) for token in tokens]
    types = [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)]
    roles = {"bos": 1, "eos": 2, "unknown": 0}
    return GgufVocabulary("llama", "", tokens, types, scores, [], roles, None, None, None)


@pytest.fixture(scope="session")
def gguf_vocabularies(libraries: dict[str, tokenizers.Tokenizer]) -> dict[str, GgufVocabulary]:
    return {
        "gguf-bpe": gguf_byte_level(libraries["byte-level"]),
        "gguf-spm": gguf_sentencepiece(libraries["legacy"]),
    }
