"""The Triton backend behind the door: custom ops and their fake implementations, mixed batches, padded rows."""

import dataclasses

import pytest
import torch
from inferd_kernels.ops import LOGITS_OP_NAMES, OP_NAMES, AttentionShape, Ops, load_ops
from inferd_kernels.proof.problems import allocate, paged_batch, relative_error
from inferd_kernels.triton import library, linear

SHAPE = AttentionShape(4, 2, 16, 0.25)


@pytest.fixture(scope="module")
def ops() -> Ops:
    return load_ops("cpu", "triton")


def test_every_op_is_triton(ops: Ops) -> None:
    assert {ops.backends[name] for name in (*OP_NAMES, *LOGITS_OP_NAMES)} == {"triton"}


@pytest.mark.parametrize("name", ["rms_norm", "silu_mul", "quantize_rows", "paged_attention", "linear_w4"])
def test_custom_ops_are_registered_soundly(name: str) -> None:
    x = torch.randn(2, 32)
    arguments: dict[str, tuple[object, ...]] = {
        "rms_norm": (x, torch.ones(32), 1e-5),
        "silu_mul": (x,),
        "quantize_rows": (x, torch.int8),
        "linear_w4": (x.bfloat16(), torch.zeros(4, 16, dtype=torch.uint8), torch.ones(4, 1), None, None),
        "paged_attention": attention_arguments(),
    }
    op = getattr(linear if hasattr(linear, name) else library, name)
    torch.library.opcheck(op, arguments[name], test_utils=("test_schema", "test_faketensor"))


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
    out = ops.paged_attention(q, kv[0], kv[1], batch, SHAPE)
    rows = [row for row, length in zip(range(len(q)), lens, strict=False) if length] if 0 in lens else slice(None)
    expected = load_ops("cpu", "reference").paged_attention(q, kv[0], kv[1], batch, SHAPE)
    assert relative_error(out[rows], expected[rows]) < 2e-6


def test_padded_decode_rows_of_a_graph_are_harmless(ops: Ops) -> None:
    """A row of a captured batch without a sequence: length 0, slot -1."""
    arguments = attention_arguments()
    tables, blocks = allocate([5, 0], 16, torch.Generator().manual_seed(0))
    batch = dataclasses.replace(paged_batch([1, 1], [5, 0], tables), max_seq_len=64)
    q = torch.randn(2, 4, 16)
    kv = arguments[1]
    assert isinstance(kv, torch.Tensor)
    assert kv.shape[0] >= blocks
    out = ops.paged_attention(q, kv, kv, batch, SHAPE)
    assert (out[1] == 0).all()
    assert out[0].isfinite().all()
