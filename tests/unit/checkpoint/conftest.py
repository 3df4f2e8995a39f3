"""Tiny checkpoints, written file by file so that each field can be broken."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "vocab_size": 4}


def safetensors_bytes(header: Any, data: bytes) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


@pytest.fixture
def pointer() -> bytes:
    """What Git LFS leaves where it has not fetched a file."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 98362432\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint folder with one safetensors file."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    header = {
        "__metadata__": {"format": "pt"},
        "model.embed_tokens.weight": {"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 128]},
        "model.norm.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [128, 144]},
    }
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(header, bytes(144)))
    return tmp_path


@pytest.fixture
def write_safetensors() -> Callable[[Path, Any, bytes], None]:
    return lambda path, header, data: path.write_bytes(safetensors_bytes(header, data)) and None


def add_tensor(writer: GGUFWriter, name: str, *shape: int) -> None:
    writer.add_tensor(name, np.arange(np.prod(shape), dtype=np.float32).reshape(shape))


@pytest.fixture
def write_gguf() -> Callable[..., Path]:
    """Write a one-layer llama-like GGUF. extra: called with the writer before it writes; drop: tensors left out."""

    def write(
        path: Path,
        extra: Callable[[GGUFWriter], None] = lambda writer: None,
        drop: tuple[str, ...] = (),
        arch: str = "llama",
    ) -> Path:
        writer = GGUFWriter(path, arch)
        writer.add_block_count(1)
        writer.add_context_length(128)
        writer.add_embedding_length(64)
        writer.add_feed_forward_length(96)
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["<|end|>", "a", "b", "ab"])
        writer.add_token_types([3, 1, 1, 1])
        writer.add_token_merges(["a b"])
        writer.add_eos_token_id(0)
        extra(writer)
        tensors = {"token_embd.weight": (4, 64), "blk.0.attn_q.weight": (64, 64), "blk.0.attn_k.weight": (32, 64)}
        tensors |= {"blk.0.attn_v.weight": (32, 64), "output_norm.weight": (64,), "output.weight": (4, 64)}
        for name, shape in tensors.items():
            if name not in drop:
                add_tensor(writer, name, *shape)
        quantized = np.zeros((64, 18 * 3), dtype=np.uint8)
        writer.add_tensor("blk.0.ffn_down.weight", quantized, raw_dtype=GGMLQuantizationType.Q4_0)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
