"""GGUF files: what is read, in Hugging Face terms, and that every kind of damage is one readable line."""

from __future__ import annotations

import contextlib
import math
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGUFEndian, GGUFReader, GGUFWriter, RopeScalingType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferd.checkpoint import GgufVocabulary, open_checkpoint
from inferd.checkpoint.gguf_config import llama3_scaling
from inferd.checkpoint.gguf_header import GGML_TYPES, read_gguf_header
from inferd.errors import StartupError
from inferd.models.registry import check_checkpoint, find_family, model_spec

Write = Callable[..., Path]


def refused(path: Path, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(StartupError, match=message) as caught:
        open_checkpoint(path)
    assert time.monotonic() - began < 5
    assert "\n" not in str(caught.value)


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    theirs = {int(kind): (kind.name.lower(), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    for kind, described in GGML_TYPES.items():
        assert theirs[kind] == described


def test_matches_the_gguf_package_reader(tmp_path: Path, write_gguf: Write) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    header = read_gguf_header(path)
    reader = GGUFReader(path)
    for tensor, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert (tensor.name, tensor.offset, tensor.nbytes) == (theirs.name, theirs.data_offset, theirs.n_bytes)
        assert list(tensor.dimensions) == theirs.shape.tolist()
    for key, value in header.metadata.items():
        theirs = reader.fields[key].contents()
        assert value == (pytest.approx(theirs, rel=1e-6) if isinstance(value, float) else theirs)


def test_without_the_vocabulary_all_else_is_the_same(demo_gguf: Path) -> None:
    whole, partial = read_gguf_header(demo_gguf), read_gguf_header(demo_gguf, with_vocabulary=False)
    assert partial.tensors == whole.tensors
    left_out = {key for key, value in whole.metadata.items() if partial.metadata[key] != value}
    assert left_out == {f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")}
    assert not any(partial.metadata[key] for key in left_out)
    checkpoint = open_checkpoint(demo_gguf, with_vocabulary=False)
    assert checkpoint.tokenizer is None
    assert checkpoint == replace(open_checkpoint(demo_gguf), tokenizer=None)


def test_config_and_names(tmp_path: Path, write_gguf: Write) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf"))
    expected = {
        "gguf_architecture": "llama",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 4,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "eos_token_id": 0,
    }
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.generation_config == {"eos_token_id": [0]}
    tensors = checkpoint.tensors
    assert tensors["blk.0.attn_k.weight"].shape == (32, 64)
    down = tensors["blk.0.ffn_down.weight"]
    assert (down.format, down.shape, down.nbytes) == ("q4_0", (64, 96), 64 * 3 * 18)
    assert isinstance(checkpoint.tokenizer, GgufVocabulary)
    assert checkpoint.tokenizer.tokens == ["<|end|>", "a", "b", "ab"]


def test_tied_embeddings_and_qwen(tmp_path: Path, write_gguf: Write) -> None:
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", drop=("output.weight",), arch="qwen3"))
    assert checkpoint.config["tie_word_embeddings"] is True
    assert find_family(checkpoint.config)[1] == "Qwen3ForCausalLM"


def test_variants(tmp_path: Path, write_gguf: Write) -> None:
    def extra(writer: GGUFWriter) -> None:
        writer.add_sliding_window(32)
        writer.add_key_length(32)
        writer.add_rope_dimension_count(16)
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
        writer.add_file_type(1)
        writer.add_chat_template([{"name": "default", "template": "D"}, {"name": "tools", "template": "T"}])

    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", extra))
    config = checkpoint.config
    assert model_spec(config).architecture == "MistralForCausalLM"
    assert (config["sliding_window"], config["head_dim"], config["partial_rotary_factor"]) == (32, 32, 0.5)
    assert config["rope_scaling"] == {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert config["torch_dtype"] == "float16"
    assert checkpoint.chat_templates == {"default": "D", "tools": "T"}


def llama3_factors(factor: float, count: int, theta: float) -> list[float]:
    """Divisors as the Llama 3 formula defines them (per frequency, from its wavelength)."""
    result = []
    for index in range(count):
        wavelength = 2 * math.pi * theta ** (index / count)
        if wavelength < 8192 / 4:
            result.append(1.0)
        elif wavelength > 8192:
            result.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            result.append(1 / ((1 - smooth) / factor + smooth))
    return result


def test_llama3_rope_factors(tmp_path: Path, write_gguf: Write) -> None:
    factors = llama3_factors(8.0, 64, 500000.0)
    parameters = llama3_scaling(500000.0, factors)
    assert parameters is not None
    assert (parameters["rope_type"], parameters["factor"]) == ("llama3", 8.0)
    assert llama3_scaling(500000.0, [1.0, 3.0, 2.0]) is None

    def extra(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", np.array([1.0, 3.0, 2.0, 5.0], dtype=np.float32))

    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", extra))
    assert checkpoint.config["rope_scaling"]["long_factor"] == [1.0, 3.0, 2.0, 5.0]
    assert "rope_freqs.weight" not in checkpoint.tensors


def test_split(tmp_path: Path, write_gguf: Write) -> None:
    whole = open_checkpoint(write_gguf(tmp_path / "m.gguf"))
    reader = GGUFReader(tmp_path / "m.gguf")
    for part in range(2):
        writer = GGUFWriter(tmp_path / f"s-{part + 1:05}-of-00002.gguf", "llama")
        for key, field in reader.fields.items() if part == 0 else ():
            if not key.startswith(("GGUF.", "general.architecture")):
                writer.add_key_value(key, field.contents(), field.types[0], *field.types[1:2])
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for tensor in reader.tensors[part::2]:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    first, second = tmp_path / "s-00001-of-00002.gguf", tmp_path / "s-00002-of-00002.gguf"
    for path in (first, second):
        split = open_checkpoint(path)
        assert split.config == whole.config
        assert split.fingerprint == whole.fingerprint
    (tmp_path / "m.gguf").unlink()
    assert open_checkpoint(tmp_path).fingerprint == whole.fingerprint
    second.write_bytes(first.read_bytes())
    refused(first, "says it is part 1 of 2, but is used as part 2")
    second.unlink()
    refused(first, "part 2 of 2 is missing")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"GGUX", "wrong magic"),
        (4, struct.pack("<I", 1), "version 1"),
        (4, struct.pack(">I", 3), "big-endian"),
        (8, struct.pack("<Q", 2**63), "do not fit"),
        (16, struct.pack("<Q", 2**63), "do not fit"),
        (24, struct.pack("<Q", 2**63), "name of"),
        (24, struct.pack("<Q", 0), "name of"),
        (24, struct.pack("<Q", 60_000), "truncated"),
        (24 + 8 + len("general.architecture"), struct.pack("<I", 99), "unknown type 99"),
    ],
)
def test_corrupt_header(tmp_path: Path, write_gguf: Write, offset: int, value: bytes, message: str) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    data[offset : offset + len(value)] = value
    path.write_bytes(data)
    refused(path, message)


def after(data: bytes, text: bytes) -> int:
    return data.index(text) + len(text)


def tensor_field(data: bytes, name: bytes, rank: int) -> dict[str, int]:
    """Byte positions of a tensor info's fields."""
    start = after(data, struct.pack("<Q", len(name)) + name)
    return {"rank": start, "dimension": start + 4, "type": start + 4 + 8 * rank, "offset": start + 8 + 8 * rank}


@pytest.mark.parametrize(
    ("field", "layout", "value", "message"),
    [
        ("rank", "<I", 0, "dimensions"),
        ("rank", "<I", 2**31, "dimensions"),
        ("dimension", "<Q", 0, "no whole number"),
        ("dimension", "<Q", 2**63, "truncated or corrupt"),
        ("type", "<I", 5, "unknown type 5"),
        ("type", "<I", 12, "no whole number of q4_k"),
        ("offset", "<Q", 2**62, "truncated or corrupt"),
        ("offset", "<Q", 1, "not a multiple of 32"),
        ("offset", "<Q", 0, "overlap"),
    ],
)
def test_corrupt_tensor_info(
    tmp_path: Path, write_gguf: Write, field: str, layout: str, value: int, message: str
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    position = tensor_field(data, b"blk.0.attn_k.weight", 2)[field]
    data[position : position + struct.calcsize(layout)] = struct.pack(layout, value)
    path.write_bytes(data)
    refused(path, message)


def test_array_counts(tmp_path: Path, write_gguf: Write) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    count = after(data, b"tokenizer.ggml.tokens") + 8
    for value in (2**63, len(data)):
        data[count : count + 8] = struct.pack("<Q", value)
        path.write_bytes(data)
        refused(path, "do not fit")
    count = after(data, b"tokenizer.ggml.token_type") + 8
    data = bytearray(write_gguf(tmp_path / "n.gguf").read_bytes())
    data[count : count + 8] = struct.pack("<Q", 2**60)
    path.write_bytes(data)
    refused(path, "truncated")


@pytest.mark.parametrize("keep", [0, 3, 23, 24, 100, 700, -1])
def test_truncated(tmp_path: Path, write_gguf: Write, keep: int) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:keep])
    refused(path, "truncated|no GGUF file")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_uint32("general.alignment", 48), "power of two"),
        (lambda w: w.add_bos_token_id(4), "bos_token_id is 4"),
        (lambda w: w.add_token_scores([1.0]), "1 entries in scores"),
        (lambda w: w.add_rope_scaling_type(RopeScalingType.LONGROPE), "not supported"),
    ],
)
def test_bad_metadata(tmp_path: Path, write_gguf: Write, extra: Callable[[GGUFWriter], None], message: str) -> None:
    def with_factor(writer: GGUFWriter) -> None:
        writer.add_rope_scaling_factor(2.0)
        extra(writer)

    refused(write_gguf(tmp_path / "m.gguf", with_factor), message)


@pytest.mark.parametrize(
    "name", ["x-00001-of-00000.gguf", "x-00000-of-00002.gguf", "x-00003-of-00002.gguf", "x-00000-of-00000.gguf"]
)
def test_a_part_that_cannot_be(tmp_path: Path, write_gguf: Write, name: str) -> None:
    path = write_gguf(tmp_path / name)
    refused(path, "its name says part")
    refused(tmp_path, "its name says part")


def test_a_large_count_of_parts_is_refused_at_once(tmp_path: Path, write_gguf: Write) -> None:
    refused(write_gguf(tmp_path / "x-00001-of-99999.gguf"), "part 2 of 99999 is missing")


def test_big_endian_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.BIG)
    writer.add_block_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    refused(path, "a big-endian GGUF file")


def test_pointers_are_named(tmp_path: Path, pointer: bytes) -> None:
    (tmp_path / "m.gguf").write_bytes(pointer)
    refused(tmp_path / "m.gguf", "a Git LFS pointer")


@pytest.mark.parametrize(
    ("extra", "scaling"),
    [
        (lambda w: w.add_rope_scaling_factor(4.0), {"rope_type": "linear", "factor": 4.0}),
        (lambda w: w.add_float32("llama.rope.scale_linear", 2.0), {"rope_type": "linear", "factor": 2.0}),
        (lambda w: w.add_rope_scaling_factor(1.0), None),
        (lambda w: (w.add_rope_scaling_type(RopeScalingType.NONE), w.add_rope_scaling_factor(4.0)), None),
        (
            lambda w: (
                w.add_rope_scaling_type(RopeScalingType.YARN),
                w.add_rope_scaling_factor(4.0),
                w.add_rope_scaling_attn_factors(0.5),
            ),
            {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5 * (1 + 0.1 * math.log(4))},
        ),
        (
            lambda w: (
                w.add_rope_scaling_attn_factors(0.5),
                w.add_tensor("rope_freqs.weight", np.array([1.0, 3.0], dtype=np.float32)),
            ),
            {"rope_type": "longrope", "short_factor": [1.0, 3.0], "long_factor": [1.0, 3.0], "attention_factor": 0.5},
        ),
    ],
)
def test_rope_scaling(
    tmp_path: Path, write_gguf: Write, extra: Callable[[GGUFWriter], object], scaling: object
) -> None:
    assert open_checkpoint(write_gguf(tmp_path / "m.gguf", extra)).config["rope_scaling"] == scaling


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (lambda w: w.add_rope_scaling_attn_factors(0.5), "attn_factor 0.5 is supported for yarn only"),
        (
            lambda w: w.add_float32("llama.rope.scaling.yarn_log_multiplier", 0.1),
            "yarn_log_multiplier is not supported",
        ),
        (lambda w: w.add_float32("llama.rope.freq_base_local", 1e4), "freq_base_local is not supported"),
        (lambda w: w.add_attention_scale(0.1), "attention.scale is not supported"),
        (lambda w: w.add_logit_scale(0.1), "logit_scale is not supported"),
    ],
)
def test_keys_that_change_the_result_are_not_dropped(
    tmp_path: Path, write_gguf: Write, extra: Callable[[GGUFWriter], None], message: str
) -> None:
    refused(write_gguf(tmp_path / "m.gguf", extra), message)


def test_biases_of_the_inputs_alone(tmp_path: Path, write_gguf: Write) -> None:
    def extra(writer: GGUFWriter) -> None:
        for part, size in (("q", 64), ("k", 32), ("v", 32)):
            writer.add_tensor(f"blk.0.attn_{part}.bias", np.zeros(size, np.float32))

    mixer = model_spec(open_checkpoint(write_gguf(tmp_path / "m.gguf", extra)).config).layers[0].mixer
    assert (mixer.qkv_bias, mixer.o_bias) == (True, False)


def test_a_template_that_no_list_names(tmp_path: Path, write_gguf: Write) -> None:
    path = write_gguf(tmp_path / "m.gguf", lambda w: w.add_string("tokenizer.chat_template.tool_use", "T"))
    assert open_checkpoint(path).chat_templates == {"tool_use": "T"}


def test_unsupported_architecture(tmp_path: Path, write_gguf: Write) -> None:
    """Whatever else such a header lacks or has: its family is what is missing."""
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", arch="wav2vec"))
    with pytest.raises(StartupError, match=r"'wav2vec' is not supported \(supported: .*llama"):
        check_checkpoint(checkpoint)


def test_missing_embedding(tmp_path: Path, write_gguf: Write) -> None:
    refused(write_gguf(tmp_path / "m.gguf", drop=("token_embd.weight",)), "token_embd")


def test_several_models_in_a_folder(tmp_path: Path, write_gguf: Write) -> None:
    write_gguf(tmp_path / "a.gguf")
    write_gguf(tmp_path / "b.gguf")
    refused(tmp_path, r"a\.gguf, b\.gguf")


@given(data=st.data())
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_damage_never_escapes(tmp_path: Path, write_gguf: Write, data: st.DataObject) -> None:
    path = tmp_path / "m.gguf"
    if not path.exists():
        write_gguf(path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 1500))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(content)
    with contextlib.suppress(StartupError):  # damage to a weight or a name nobody needs may go unnoticed
        open_checkpoint(damaged)


def test_demo_opens_quickly(demo_gguf: Path) -> None:
    began = time.process_time()
    checkpoint = open_checkpoint(demo_gguf)
    assert time.process_time() - began < 0.5
    assert len(checkpoint.tensors) == 272
    assert checkpoint.config["tie_word_embeddings"] is True
    assert checkpoint.config["head_dim"] == 64
    assert "<|im_start|>" in checkpoint.chat_templates["default"]
