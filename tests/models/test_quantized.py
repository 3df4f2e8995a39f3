"""GGUF: every type that the gguf package dequantizes loads to the same values, and a file of mixed types computes what
transformers computes with the dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from inferd_kernels.ops import Ops, load_ops
from inferd_kernels.weights import Weight
from transformers import LlamaConfig, LlamaForCausalLM

from inferd.checkpoint import Checkpoint, TensorRecord, open_checkpoint
from inferd.errors import StartupError
from inferd.models.extract_reader import half_split_order
from inferd.models.loader import Loader
from inferd.models.model import Model
from inferd.models.registry import check_checkpoint
from inferd.models.tensor_files import TensorFiles
from inferd.request import LogprobParams

FLOATS = {"F32", "F16", "BF16"}


def dequantizable() -> list[str]:
    names = []
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, size), np.uint8), kind)
        except NotImplementedError:
            continue
        if block > 1 and kind.name not in FLOATS:
            names.append(kind.name)
    return names


def random_blocks(kind: GGMLQuantizationType, rows: int, columns: int, seed: int, bound: float) -> np.ndarray:
    """[rows, bytes per row]: random bytes, of which those blocks are kept whose values are finite and within bound."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    needed = rows * columns // block
    generator, kept = np.random.default_rng(seed), np.empty((0, size), np.uint8)
    while len(kept) < needed:
        blocks = generator.integers(0, 256, (4096, size), np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(dequantize(blocks, kind)).max(-1)
        kept = np.concatenate((kept, blocks[(largest < bound) & (largest > bound / 50)]))
    return kept[:needed].reshape(rows, -1)


def test_the_types_in_use_are_among_the_tested() -> None:
    used = {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"}
    assert used <= set(dequantizable())


@pytest.mark.parametrize("name", dequantizable())
def test_every_quantization_type_loads(name: str, tmp_path: Path) -> None:
    blocks = random_blocks(GGMLQuantizationType[name], 4, 512, 1, 100.0)
    file = tmp_path / "weights"
    file.write_bytes(b"12345" + blocks.tobytes())
    record = TensorRecord("w", name.lower(), (4, 512), file, 5, blocks.nbytes)
    weight = load_ops("cpu", "reference").prepare_weight(TensorFiles().read(record), torch.float32)
    np.testing.assert_array_equal(weight.numpy(), dequantize(blocks, GGMLQuantizationType[name]))


@pytest.mark.parametrize(("name", "dtype"), [("f32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("offset", [0, 7])
def test_float_types_are_mapped(name: str, dtype: torch.dtype, offset: int, tmp_path: Path) -> None:
    values = torch.randn(3, 5).to(dtype)
    file = tmp_path / "weights"
    file.write_bytes(bytes(offset) + values.view(torch.uint8).numpy().tobytes())
    read = TensorFiles().read(TensorRecord("w", name, (3, 5), file, offset, values.nbytes))
    assert isinstance(read, torch.Tensor)
    torch.testing.assert_close(read, values, rtol=0, atol=0)


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(np.ones(4, np.float32).tobytes())
    tensor = TensorFiles().read(TensorRecord("w", "f32", (4,), file, 0, 16))
    assert isinstance(tensor, torch.Tensor)
    tensor.zero_()
    assert file.read_bytes() == np.ones(4, np.float32).tobytes()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A file of mixed types, and its values as stored."""
    values: dict[str, torch.Tensor] = {}
    return write_gguf(tmp_path_factory.mktemp("mixed") / "model.gguf", values), values


def test_a_type_nobody_can_dequantize_is_refused(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    checkpoint = open_checkpoint(mixed[0])
    name = "blk.0.ffn_down.weight"
    record = checkpoint.tensors[name]
    checkpoint.tensors[name] = TensorRecord(name, "f8_e4m3", record.shape, record.file, record.offset, 256 * 256)
    with pytest.raises(
        StartupError,
        match=r"tensor blk\.0\.ffn_down\.weight: quantization type f8_e4m3 cannot be dequantized",
    ):
        load(checkpoint)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf", {}, broken_norm=True)
    with pytest.raises(StartupError, match=r"blk\.0\.attn_norm\.weight holds values that are not finite"):
        load(open_checkpoint(path))


def test_progress_rises_to_one(mixed: tuple[Path, dict[str, torch.Tensor]]) -> None:
    fractions: list[float] = []
    load(open_checkpoint(mixed[0]), fractions.append)
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(fractions) > 15


def load(checkpoint: Checkpoint, notify: Callable[[float], None] = lambda fraction: None) -> None:
    spec, ops = check_checkpoint(checkpoint), load_ops("cpu", "reference")
    Loader(checkpoint, spec, ops, torch.float32, torch.device("cpu"), notify).load(16)


# GGUF name -> (type, rows, columns); q, k and v of the first layer have three types, those of the second one.
MATRICES = {
    "token_embd.weight": ("Q8_0", 96, 256),
    "blk.0.attn_q.weight": ("Q4_K", 256, 256),
    "blk.0.attn_k.weight": ("Q6_K", 128, 256),
    "blk.0.attn_v.weight": ("Q8_0", 128, 256),
    "blk.0.attn_output.weight": ("Q5_K", 256, 256),
    "blk.0.ffn_gate.weight": ("Q4_0", 256, 256),
    "blk.0.ffn_up.weight": ("Q4_0", 256, 256),
    "blk.0.ffn_down.weight": ("Q3_K", 256, 256),
    "blk.1.attn_q.weight": ("Q4_1", 256, 256),
    "blk.1.attn_k.weight": ("Q4_1", 128, 256),
    "blk.1.attn_v.weight": ("Q4_1", 128, 256),
    "blk.1.attn_output.weight": ("IQ4_XS", 256, 256),
    "blk.1.ffn_gate.weight": ("Q2_K", 256, 256),
    "blk.1.ffn_up.weight": ("Q5_1", 256, 256),
    "blk.1.ffn_down.weight": ("Q5_0", 256, 256),
}
NORMS = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm")
HF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name: str) -> str:
    for short, long in HF_NAMES.items():
        name = name.replace(short, long)
    return name.replace("blk.", "model.layers.")


def write_gguf(path: Path, values: dict[str, torch.Tensor], broken_norm: bool = False) -> Path:
    """A two-layer llama of mixed types; `values` receives its weights under their Hugging Face names, as stored."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{index}" for index in range(96)])
    writer.add_token_types([1] * 96)
    for seed, (name, (kind_name, rows, columns)) in enumerate(MATRICES.items()):
        kind = GGMLQuantizationType[kind_name]
        blocks = random_blocks(kind, rows, columns, seed, 0.2)
        writer.add_tensor(name, blocks, raw_dtype=kind)
        values[hf_name(name)] = torch.from_numpy(dequantize(blocks, kind))
    for seed, name in enumerate(NORMS):
        norm = 1 + 0.1 * np.random.default_rng(seed).standard_normal(256).astype(np.float32)
        if broken_norm:
            norm[3] = np.nan
        writer.add_tensor(f"{name}.weight", norm)
        values[hf_name(f"{name}.weight")] = torch.from_numpy(norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_half_split_order() -> None:
    """Stored pairs (0, 1), (2, 3) of a head of 4 become halves (0, 2) and (1, 3)."""
    assert half_split_order(8, 4, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert half_split_order(12, 6, 4).tolist() == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_interleaved_rows_that_rotate_in_part() -> None:
    """llama.cpp turns the pairs (0, 1), (2, 3), .. of the first R channels and leaves the others: so do the reordered
    rows under the half-split rotation."""
    rows, head_dim, rotary_dim, position = 24, 12, 8, 5.0
    stored = torch.randn(rows)
    angles = position * 10000.0 ** (-torch.arange(0, rotary_dim, 2) / rotary_dim)
    turned = stored.clone().view(-1, head_dim)
    even, odd = stored.view(-1, head_dim)[:, 0:rotary_dim:2], stored.view(-1, head_dim)[:, 1:rotary_dim:2]
    turned[:, 0:rotary_dim:2] = even * angles.cos() - odd * angles.sin()
    turned[:, 1:rotary_dim:2] = even * angles.sin() + odd * angles.cos()
    order = half_split_order(rows, head_dim, rotary_dim)
    ours = stored[order].view(-1, head_dim).clone()
    first, second = ours[:, : rotary_dim // 2].clone(), ours[:, rotary_dim // 2 : rotary_dim].clone()
    ours[:, : rotary_dim // 2] = first * angles.cos() - second * angles.sin()
    ours[:, rotary_dim // 2 : rotary_dim] = first * angles.sin() + second * angles.cos()
    torch.testing.assert_close(ours.flatten(), turned.flatten()[order])


def test_mixed_types_compute_what_the_dequantized_weights_do(
    mixed: tuple[Path, dict[str, torch.Tensor]],
    load_decoder: Callable[[Path], Model],
    make_driver: Callable[[Path], Any],
    run_type: type,
) -> None:
    path, values = mixed[0], dict(mixed[1])
    decoder = load_decoder(path)
    assert [len(layer.mixer.qkv.parts) for layer in decoder.weights.layers] == [1, 1]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=256, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        )
    ).eval()  # fmt: skip
    for layer in (0, 1):
        for part in ("q", "k"):
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            values[name] = values[name][half_split_order(len(values[name]), 64, 64)]
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    model.load_state_dict(values)
    prompt = list(range(3, 40))
    with torch.no_grad():
        expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    run = run_type(prompt, max_tokens=1, prompt_logprobs=LogprobParams(token_ids=tuple(range(96))))
    make_driver(path).run([run])
    ours = torch.tensor([result.top_logprobs for result in run.prompt_results])
    torch.testing.assert_close(ours, expected[:-1], atol=1e-3, rtol=1e-4)


def test_parts_of_unlike_formats_stay_apart_where_a_backend_keeps_blocks(
    mixed: tuple[Path, dict[str, torch.Tensor]],
) -> None:
    """A backend that computes on blocks gets q | k | v fused only where the three have one format."""

    class Keeping(Ops):
        def prepare_weight(self, weight: Weight, dtype: torch.dtype = torch.float32) -> Weight:
            return weight

    checkpoint = open_checkpoint(mixed[0])
    loader = Loader(
        checkpoint, check_checkpoint(checkpoint), Keeping(), torch.float32, torch.device("cpu"), lambda fraction: None
    )
    layers = loader.load(16).layers
    assert [[part.format for part in layer.mixer.qkv.parts] for layer in layers] == [["q4_k", "q6_k", "q8_0"], ["q4_1"]]
    assert [[part.shape for part in layer.feed_forward.up.parts] for layer in layers] == [
        [(512, 256)],
        [(256, 256)] * 2,
    ]
