"""The Triton backend behind the door: custom ops and their fake implementations, mixed batches, padded rows."""

import dataclasses

import pytest
import torch
from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, load_ops
from inferd_kernels.proof.problems import allocate, paged_batch, relative_error
from inferd_kernels.triton import experts, library, linear
from torch.library import CustomOpDef

SHAPE = AttentionShape(4, 2, 16, 0.25)
TORCHS = {
    *("add_layer_norm", "activate", "self_attention", "decoder_stack", "pack_rows", "key_cache"),
    *("release", "attention_bytes"),
    # A model with latent attention runs without graphs.
    *("rotate", "write_latents", "latent_attention"),
}


@pytest.fixture(scope="module")
def ops() -> Ops:
    return load_ops("cpu", "triton")


def test_every_op_of_a_decoder_is_triton(ops: Ops) -> None:
    """What torch computes is of encoders, of latent attention, or runs once at load."""
    torchs = {name for name, label in ops.backends.items() if label == "reference"}
    assert torchs == TORCHS
    assert {label for name, label in ops.backends.items() if name not in torchs} == {"triton"}


OP_FILES = (library, linear, experts)


def custom_ops() -> dict[str, CustomOpDef]:
    return {
        op._name: op for module in OP_FILES for op in vars(module).values() if isinstance(op, CustomOpDef)
    }  # fmt: skip


def arguments() -> dict[str, tuple[object, ...]]:
    """Of every custom op."""
    x, numbers, row = torch.randn(2, 32), torch.ones(2), torch.zeros(1, dtype=torch.int32)
    longs, kv = torch.arange(2), torch.randn(4, 16, 2, 16)
    gate_up, down, ids = (
        torch.randn(4, 16, 32),
        torch.randn(4, 32, 8),
        torch.tensor([[1, 0], [3, 1]]).int(),
    )
    fp8 = torch.zeros(4, 32).to(torch.float8_e4m3fn)
    return {
        "rms_norm": (x, torch.ones(32), 1e-5),
        "add_rms_norm": (x, x.clone(), torch.ones(32), 1e-5),
        "silu_mul": (x,),
        "copy_blocks": (kv.clone(), longs[:1], longs[1:]),
        "rope_kv_write": (
            torch.randn(2, 128), kv.clone(), kv.clone(), None, None, longs, longs, torch.rand(4, 16), None, None, 0.0,
        ),
        "paged_attention": attention_arguments(),
        "sample": (
            x, numbers, torch.ones(2, dtype=torch.int32), numbers, numbers, longs, torch.zeros(2, dtype=torch.int32),
            longs, False,
        ),
        "penalize": (x.clone(), row, row.view(1, 1), row.view(1, 1), numbers[:1], numbers[:1], numbers[:1]),
        "mask_tokens": (x.clone(), row, row.view(1, 1)),
        "quantize_rows": (x, torch.int8),
        "linear_w4": (x.bfloat16(), torch.zeros(4, 16, dtype=torch.uint8), torch.ones(4, 1), None, None),
        "linear_fp8": (x.bfloat16(), fp8, torch.ones(4), None),
        "route": (torch.randn(2, 4), 2, True),
        "experts": (x, ids, torch.rand(2, 2), gate_up, down, torch.randn(4, 16), None, "clamped_swiglu"),
    }  # fmt: skip


def test_every_custom_op_is_checked() -> None:
    assert set(arguments()) == set(custom_ops())


@pytest.mark.parametrize("name", sorted(custom_ops()))
def test_custom_ops_are_registered_soundly(name: str) -> None:
    """Schema, mutated arguments and the fake implementation, as torch checks them."""
    # Torch's schema check multiplies its arguments, which fp8 does not allow.
    checks = ("test_faketensor",) if name == "linear_fp8" else ("test_schema", "test_faketensor")
    torch.library.opcheck(custom_ops()[name], arguments()[name], test_utils=checks)


def attention_arguments() -> tuple[object, ...]:
    tables, blocks = allocate([5, 9], 16, torch.Generator().manual_seed(0))
    batch = paged_batch([1, 3], [5, 9], tables)
    kv = torch.randn(blocks, 16, 2, 16)
    q = torch.randn(4, 4, 16)
    return (q, kv, kv, None, None, None, batch.cu_seqlens, batch.seq_lens, tables, 1, 9, 0.25, 0, 0.0)


@pytest.mark.parametrize(("queries", "lens"), [([1, 1, 7], [17, 1, 9]), ([1, 1], [0, 30]), ([4], [4])])
def test_mixed_batches_equal_the_reference(ops: Ops, queries: list[int], lens: list[int]) -> None:
    generator = torch.Generator().manual_seed(1)
    tables, blocks = allocate(lens, 16, generator)
    batch = paged_batch(queries, lens, tables)
    kv = [torch.randn(blocks, 16, 2, 16, generator=generator) for _ in range(2)]
    q = torch.randn(sum(queries), 4, 16, generator=generator)
    attention = Attention(SHAPE, KVCache(*kv))
    out = ops.paged_attention(q, attention, batch)
    rows = [row for row, length in zip(range(len(q)), lens, strict=False) if length] if 0 in lens else slice(None)
    expected = load_ops("cpu", "reference").paged_attention(q, attention, batch)
    assert relative_error(out[rows], expected[rows]) < 2e-6


def test_padded_decode_rows_of_a_graph_are_harmless(ops: Ops) -> None:
    """A row of a captured batch without a sequence: length 0, slot -1."""
    kv = attention_arguments()[1]
    tables, blocks = allocate([5, 0], 16, torch.Generator().manual_seed(0))
    batch = dataclasses.replace(paged_batch([1, 1], [5, 0], tables), max_seq_len=64)
    q = torch.randn(2, 4, 16)
    assert isinstance(kv, torch.Tensor)
    assert kv.shape[0] >= blocks
    out = ops.paged_attention(q, Attention(SHAPE, KVCache(kv, kv)), batch)
    assert (out[1] == 0).all()
    assert out[0].isfinite().all()
