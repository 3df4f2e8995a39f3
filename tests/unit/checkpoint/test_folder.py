"""Checkpoint folders: what is read, and that every kind of damage is one readable line."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferd.checkpoint import TokenizerFiles, open_checkpoint
from inferd.errors import StartupError

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def test_folder(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "T"}')
    checkpoint = open_checkpoint(folder)
    assert checkpoint.format == "safetensors"
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.chat_templates == {"default": "T"}
    assert checkpoint.tokenizer == TokenizerFiles(None, {"chat_template": "T"}, {})
    record = checkpoint.tensors["model.norm.weight"]
    assert (record.format, record.shape, record.nbytes) == ("bf16", (8,), 16)
    assert record.offset + record.nbytes == (folder / "model.safetensors").stat().st_size


def test_matches_what_the_safetensors_library_wrote(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "y": np.ones((2,), dtype=np.float16)}
    save_file(arrays, folder / "model.safetensors")
    tensors = open_checkpoint(folder).tensors
    for name, array in arrays.items():
        record = tensors[name]
        with record.file.open("rb") as file:
            file.seek(record.offset)
            assert file.read(record.nbytes) == array.tobytes()
        assert record.shape == array.shape


def test_sharded(folder: Path, write_safetensors: Callable[[Path, Any, bytes], None]) -> None:
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "a.safetensors", {"x": ONE}, bytes(8))
    write_safetensors(folder / "b.safetensors", {"y": ONE, "unused": ONE | {"data_offsets": [8, 16]}}, bytes(16))
    index = {"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tensors = open_checkpoint(folder).tensors
    assert {name: record.file.name for name, record in tensors.items()} == index["weight_map"]


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"x": "gone.safetensors"}, "missing"),
        ({"x": "../model.safetensors"}, "no file name"),
        ({"x": "/etc/passwd"}, "no file name"),
        ({"x": 3}, "no file name"),
        ({"other": "a.safetensors"}, "has no tensor"),
        ({}, "weight_map"),
    ],
)
def test_bad_index(
    folder: Path, write_safetensors: Callable[[Path, Any, bytes], None], weight_map: Any, message: str
) -> None:
    (folder / "model.safetensors").unlink()
    write_safetensors(folder / "a.safetensors", {"x": ONE}, bytes(8))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    refused(folder, message)


def refused(path: Path, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(StartupError, match=message) as caught:
        open_checkpoint(path)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


DUPLICATE = (
    b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"x": ONE}, bytes(7), "truncated or corrupt"),
        ({"x": ONE}, bytes(9), "the header describes 8"),
        ({"x": ONE | {"shape": [3]}}, bytes(8), "takes 12 bytes"),
        ({"x": ONE | {"shape": [-2]}}, bytes(8), "malformed shape"),
        ({"x": ONE | {"shape": [2**62, 2**62]}}, bytes(8), "takes"),
        ({"x": ONE | {"shape": [True, 2]}}, bytes(8), "malformed shape"),
        ({"x": ONE | {"dtype": "Q1"}}, bytes(8), "unknown dtype"),
        ({"x": ONE | {"data_offsets": [8, 0]}}, bytes(8), "takes 8 bytes"),
        ({"x": ONE | {"data_offsets": [2**62, 2**62 + 8]}}, bytes(8), "truncated or corrupt"),
        ({"x": ONE | {"data_offsets": "no"}}, bytes(8), "malformed data_offsets"),
        ({"x": ONE, "y": ONE | {"data_offsets": [4, 12]}}, bytes(12), "overlap"),
        ({"x": 3}, bytes(8), "no object"),
        ([], b"", "expected a JSON object"),
        (DUPLICATE, bytes(8), "appears twice"),
        (b"[" * 10_000, b"", "nested too deeply"),
        (b'{"a":' * 10_000, b"", "nested too deeply"),
        (b"{not json", b"", "not valid JSON"),
        (b"\xff\xfe\xff", b"", "not valid JSON"),
    ],
)
def test_corrupt_header(
    folder: Path, write_safetensors: Callable[[Path, Any, bytes], None], header: Any, data: bytes, message: str
) -> None:
    write_safetensors(folder / "model.safetensors", header, data)
    refused(folder, message)


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1, 10_000])
def test_header_length(folder: Path, length: int) -> None:
    (folder / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}" + bytes(100))
    refused(folder, "truncated or corrupt")


@pytest.mark.parametrize("content", [b"", b"\0\0\0"])
def test_no_safetensors_file(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "no safetensors file")


@pytest.mark.parametrize("cut", [1, 50, 143])
def test_truncated(folder: Path, cut: int) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-cut])
    refused(folder, "truncated or corrupt")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
def test_pointers_are_named(folder: Path, name: str, pointer: bytes) -> None:
    (folder / name).write_bytes(pointer)
    refused(folder, f"{name}: a Git LFS pointer")


def test_missing_parts(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "never loaded")
    (folder / "pytorch_model.bin").unlink()
    refused(folder, r"no \.safetensors")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")
    refused(folder / "nowhere", "no such file")


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not valid JSON"), (b"[]", "JSON object"), (b'{"a":1,"a":2}', "appears twice")]
)
def test_broken_config(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    refused(folder, message)


def test_remote_code_is_named_and_ignored(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "executed"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.WARNING):
        open_checkpoint(folder)
    assert "never executed" in caplog.text
    assert not marker.exists()


def test_chat_templates(folder: Path) -> None:
    named = [{"name": "tool_use", "template": "U"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert list(open_checkpoint(folder).chat_templates.items()) == [("default", "D"), ("tool_use", "U")]
    (folder / "chat_template.json").write_text('{"chat_template": "J"}')
    assert open_checkpoint(folder).chat_templates["default"] == "J"
    (folder / "chat_template.jinja").write_text("{{ é }}", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("R")
    assert open_checkpoint(folder).chat_templates == {"default": "{{ é }}", "tool_use": "U", "rag": "R"}
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    refused(folder, "UTF-8")


def test_fingerprint_changes_with_config_index_and_weights(folder: Path) -> None:
    seen = {open_checkpoint(folder).fingerprint}
    assert open_checkpoint(folder).fingerprint in seen
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-72] = 1
    (folder / "model.safetensors").write_bytes(data)
    seen.add(open_checkpoint(folder).fingerprint)
    (folder / "config.json").write_text('{"architectures": []}')
    seen.add(open_checkpoint(folder).fingerprint)
    assert len(seen) == 3
