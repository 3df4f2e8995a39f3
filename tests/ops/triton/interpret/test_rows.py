"""Kernels that treat rows: norms, activation, quantization, block copies, RoPE and the KV write."""

import pytest
import torch
from inferd_kernels import reference_gpu
from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, PagedBatch, QkNorm, Rope
from inferd_kernels.proof.guard import Guard
from inferd_kernels.proof.problems import relative_error
from inferd_kernels.triton import norm
from inferd_kernels.triton.backend import TritonOps
from inferd_kernels.triton.linear import quantize_rows

REFERENCE, TRITON = Ops(), TritonOps()

TYPES = (torch.float32, torch.float16, torch.bfloat16)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 4e-3}
EIGHT_BITS = (torch.float8_e4m3fn, torch.int8)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 80, 513])
def test_norms(dtype: torch.dtype, size: int, generator: torch.Generator) -> None:
    x, residual = (torch.randn(5, size, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(size, generator=generator).to(dtype)
    with Guard():
        plain = TRITON.rms_norm(x, weight, 1e-5)
        fused, hidden = TRITON.add_rms_norm(x, residual, weight, 1e-5)
    assert relative_error(plain, REFERENCE.rms_norm(x, weight, 1e-5)) < TOLERANCE[dtype]
    expected, expected_hidden = REFERENCE.add_rms_norm(x, residual, weight, 1e-5)
    assert torch.equal(hidden, expected_hidden)
    assert relative_error(fused, expected) < TOLERANCE[dtype]
    assert torch.equal(fused, TRITON.rms_norm(hidden, weight, 1e-5))
    assert torch.equal(plain[3], TRITON.rms_norm(x[3:4], weight, 1e-5)[0])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", EIGHT_BITS)
def test_norm_with_quantized_output_equals_norm_then_quantization(
    target: torch.dtype, dtype: torch.dtype, generator: torch.Generator
) -> None:
    x = torch.randn(3, 96, generator=generator).to(dtype)
    weight = torch.randn(96, generator=generator).to(dtype)
    out, scale = torch.empty(3, 96, dtype=target), torch.empty(3)
    with Guard():
        norm.launch(out, None, scale, x, None, weight, 1e-5)
        values, expected_scale = quantize_rows(TRITON.rms_norm(x, weight, 1e-5), target)
    assert same_bytes(out, values)
    assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 100, 1025])
def test_silu_mul(dtype: torch.dtype, size: int, generator: torch.Generator) -> None:
    gate_up = torch.randn(3, 2 * size, generator=generator).to(dtype) * 4
    with Guard():
        out = TRITON.activate_gated(gate_up, "silu")
    assert relative_error(out, REFERENCE.activate_gated(gate_up, "silu")) < TOLERANCE[dtype]


@pytest.mark.parametrize("target", EIGHT_BITS)
@pytest.mark.parametrize("dtype", TYPES)
def test_quantized_rows_are_bit_equal(target: torch.dtype, dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(6, 130, generator=generator).to(dtype) * torch.tensor([0, 1e-4, 1, 3, 100, 1]).unsqueeze(1).to(
        dtype
    )
    with Guard():
        values, scale = quantize_rows(x, target)
    expected, expected_scale = reference_gpu.quantize_rows(x, target)
    assert torch.equal(scale, expected_scale)
    assert same_bytes(values, expected)
    assert torch.equal(values[0].float(), torch.zeros(130))


@pytest.mark.parametrize("dtype", [*TYPES, *EIGHT_BITS])
def test_copy_blocks(dtype: torch.dtype, generator: torch.Generator) -> None:
    cache = torch.randn(6, 16, 3, 50, generator=generator).to(dtype)
    expected = cache.clone()
    sources, destinations = torch.tensor([1, 2, 2]), torch.tensor([3, 5, 0])
    with Guard():
        TRITON.copy_blocks(cache, sources, destinations)
    expected.view(torch.uint8)[destinations] = expected.view(torch.uint8)[sources]
    assert same_bytes(cache, expected)


def rope_inputs(
    dtype: torch.dtype, dim: int, generator: torch.Generator
) -> tuple[torch.Tensor, PagedBatch, AttentionShape]:
    """Four tokens, the second written nowhere (slot -1)."""
    empty = torch.zeros(0, dtype=torch.int32)
    batch = PagedBatch(torch.tensor([3, 7, 0, 49]), torch.tensor([17, -1, 5, 40]), empty, empty, empty, 0, 0, 0)
    qkv = torch.randn(4, 10 * dim, generator=generator).to(dtype)
    return qkv, batch, AttentionShape(6, 2, dim, dim**-0.5)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("dim", "rotary"), [(32, 32), (40, 24), (80, 80), (96, 48), (32, 0)])
@pytest.mark.parametrize("normed", [False, True])
def test_rope_and_kv_write(dtype: torch.dtype, dim: int, rotary: int, normed: bool, generator: torch.Generator) -> None:
    qkv, batch, shape = rope_inputs(dtype, dim, generator)
    angles = torch.rand(50, rotary // 2, generator=generator) * 6
    rope = Rope(torch.cat((angles.cos(), angles.sin()), 1), rotary) if rotary else None
    weights = [torch.randn(dim, generator=generator).to(dtype) for _ in range(2)]
    qk_norm = QkNorm(weights[0], weights[1], 1e-6) if normed else None
    caches = [torch.full((4, 16, 2, dim), 7.0, dtype=dtype) for _ in range(4)]
    with Guard():
        q = TRITON.rope_kv_write(qkv, Attention(shape, KVCache(*caches[:2]), rope, qk_norm), batch)
    expected = REFERENCE.rope_kv_write(qkv, Attention(shape, KVCache(*caches[2:]), rope, qk_norm), batch)
    assert relative_error(q, expected) < TOLERANCE[dtype]
    assert relative_error(caches[0], caches[2]) < TOLERANCE[dtype]
    assert torch.equal(caches[1], caches[3])
    if not normed:
        assert torch.equal(caches[0], caches[2])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("target", EIGHT_BITS)
def test_kv_write_quantizes_as_torch_would(target: torch.dtype, dtype: torch.dtype, generator: torch.Generator) -> None:
    qkv, batch, shape = rope_inputs(dtype, 32, generator)
    wide = [torch.zeros(4, 16, 2, 32, dtype=dtype) for _ in range(2)]
    REFERENCE.rope_kv_write(qkv, Attention(shape, KVCache(wide[0], wide[1])), batch)
    caches = [torch.zeros(4, 16, 2, 32).to(target) for _ in range(2)]
    scales = (torch.full((4, 16, 2), -1.0), torch.full((4, 16, 2), -1.0))
    with Guard():
        TRITON.rope_kv_write(qkv, Attention(shape, KVCache(caches[0], caches[1], scales)), batch)
    slots = batch.slots[batch.slots >= 0]
    for cache, scale, values in zip(caches, scales, wide, strict=True):
        expected, expected_scale = reference_gpu.quantize_rows(values.flatten(0, 1)[slots], target)
        assert same_bytes(cache.flatten(0, 1)[slots], expected)
        assert torch.equal(scale.flatten(0, 1)[slots], expected_scale)
        assert int((scale != -1).sum()) == slots.numel() * 2


def test_two_tokens_with_one_slot_are_a_race(generator: torch.Generator) -> None:
    qkv, batch, shape = rope_inputs(torch.float32, 32, generator)
    batch.slots[1] = 5
    caches = [torch.zeros(4, 16, 2, 32) for _ in range(2)]
    with pytest.raises(Exception, match="store race"), Guard():
        TRITON.rope_kv_write(qkv, Attention(shape, KVCache(caches[0], caches[1])), batch)
