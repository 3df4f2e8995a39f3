"""What DownloadTokenizer gives makes the ids that the daemon makes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from inferd.checkpoint import GgufVocabulary, TokenizerFiles, open_checkpoint
from inferd.text.export import tokenizer_files
from inferd.text.tokenizer import Tokenizer

TEXTS = [
    "the cat sat on the mat",
    " leading and trailing ",
    "日本語 été 1234 🙂\n\n  indented",
    "<|im_start|>user\nhi<|im_end|>",
    "a<tool>b <s>c</s> <unk>",
    "def f(x):\n\treturn x  # comment",
    "",
]


def check_equal(exported: bytes, tokenizer: Tokenizer) -> None:
    library = tokenizers.Tokenizer.from_str(exported.decode())
    for text in TEXTS:
        ids = tokenizer.encode([(text, True)], add_special_tokens=True)
        assert library.encode(text).ids == ids, text
        assert library.encode(text, add_special_tokens=False).ids == tokenizer.encode([(text, True)], False), text
        assert library.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, True), text


@pytest.mark.parametrize("name", ["gguf-bpe", "gguf-spm"])
def test_a_gguf_tokenizer_is_exported(
    name: str, ours: dict[str, Tokenizer], gguf_vocabularies: dict[str, GgufVocabulary]
) -> None:
    files = tokenizer_files(gguf_vocabularies[name], ours[name].parts)
    check_equal(files["tokenizer.json"], ours[name])
    config = json.loads(files["tokenizer_config.json"])
    assert {config["bos_token"], config["eos_token"]} <= set(gguf_vocabularies[name].tokens)


def test_the_demo_models_tokenizer_is_exported(demo_gguf: Path) -> None:
    checkpoint = open_checkpoint(demo_gguf)
    tokenizer = Tokenizer.from_checkpoint(checkpoint)
    files = tokenizer_files(checkpoint.tokenizer, tokenizer.parts)
    check_equal(files["tokenizer.json"], tokenizer)


def test_a_folders_files_are_its_own(ours: dict[str, Tokenizer], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    (tmp_path / "tokenizer_config.json").write_bytes(b"[1]")
    (tmp_path / "model.safetensors").write_bytes(b"secret")
    files = tokenizer_files(TokenizerFiles(tmp_path / "tokenizer.json"), ours["byte-level"].parts)
    assert files == {"tokenizer.json": b"{}", "tokenizer_config.json": b"[1]"}
