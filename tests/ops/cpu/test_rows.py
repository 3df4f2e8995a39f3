"""Norms, SiLU, rotary embedding with the KV write, and block copies against the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, PagedBatch, QkNorm, Rope

REFERENCE = Ops()

CLOSE = {"rtol": 2e-6, "atol": 1e-6}


@pytest.mark.parametrize(("rows", "width"), [(1, 576), (5, 64), (70, 77), (3, 5)])
def test_norms_and_silu(ops: NativeOps, rows: int, width: int) -> None:
    x, residual, weight = torch.randn(rows, width) * 4, torch.randn(rows, width), torch.randn(width)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), REFERENCE.rms_norm(x, weight, 1e-5), **CLOSE)
    normed, hidden = ops.add_rms_norm(x, residual, weight, 1e-6)
    expected, expected_hidden = REFERENCE.add_rms_norm(x, residual, weight, 1e-6)
    torch.testing.assert_close(normed, expected, **CLOSE)
    assert torch.equal(hidden, expected_hidden)
    gate_up = torch.cat((x * 30, residual), -1)  # far enough for e^-x to overflow
    torch.testing.assert_close(ops.activate_gated(gate_up, "silu"), REFERENCE.activate_gated(gate_up, "silu"), **CLOSE)
    assert torch.equal(ops.rms_norm(x, weight, 1e-5)[-1:], ops.rms_norm(x[-1:], weight, 1e-5))


def test_what_is_not_a_number_stays_so(ops: NativeOps) -> None:
    x = torch.full((1, 32), float("nan"))
    assert ops.rms_norm(x, torch.ones(32), 1e-5).isnan().all()
    assert ops.activate_gated(x, "silu").isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "rotary"), [(64, 64), (80, 32), (24, 10)])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("page", [5, 16])
def test_rope_kv_write(
    ops: NativeOps,
    paged_batch: Callable[..., PagedBatch],
    dtype: torch.dtype,
    dim: int,
    rotary: int,
    norm: bool,
    page: int,
) -> None:
    shape = AttentionShape(num_heads=6, num_kv_heads=2, head_dim=dim, scale=1.0)
    batch = paged_batch([1, 5, 20], [9, 5, 33], page=page)
    batch.slots[3] = -1
    qkv = torch.randn(26, 10 * dim)
    qk_norm = QkNorm(torch.randn(dim), torch.randn(dim), 1e-6) if norm else None
    rope = Rope(torch.randn(40, rotary), rotary)
    caches = [torch.full((14, page, 2, dim), 7.0, dtype=dtype) for _ in range(4)]
    caches[0] = ops.key_cache((14, page, 2, dim), dtype, torch.device("cpu")).fill_(7.0)
    ours, theirs = (Attention(shape, KVCache(*pair), rope, qk_norm) for pair in (caches[:2], caches[2:]))
    q = ops.rope_kv_write(qkv, ours, batch)
    expected = REFERENCE.rope_kv_write(qkv, theirs, batch)
    torch.testing.assert_close(q, expected, **CLOSE)
    assert torch.equal(caches[1], caches[3])
    close = CLOSE if dtype == torch.float32 else {"rtol": 8e-3, "atol": 1e-6}
    torch.testing.assert_close(caches[0], caches[2], **close)
    plain = ops.rope_kv_write(qkv, Attention(shape, KVCache(*caches[:2])), batch)
    assert torch.equal(plain, qkv.view(26, 10, dim)[:, :6])


def test_half_precision_rounds_like_torch(ops: NativeOps, paged_batch: Callable[..., PagedBatch]) -> None:
    """Every exponent, ties and subnormals included."""
    exponents = 2.0 ** torch.arange(-30, 16)
    values = (exponents.unsqueeze(1) * torch.linspace(1, 2, 97)).flatten()
    values = torch.cat((values, torch.tensor([0.0, -0.0, 2.0**-24 * 1.5, 2.0**-25, 65519.0, 65520.0, 1e30])))
    values = torch.nn.functional.pad(values, (0, -values.numel() % 32)).view(-1, 32)
    tokens = values.shape[0]
    shape = AttentionShape(num_heads=1, num_kv_heads=1, head_dim=32, scale=1.0)
    batch = paged_batch([tokens], [tokens], page=tokens, first_block=0)
    for dtype in (torch.float16, torch.bfloat16):
        k_cache, v_cache = torch.zeros(1, tokens, 1, 32, dtype=dtype), torch.zeros(1, tokens, 1, 32, dtype=dtype)
        attention = Attention(shape, KVCache(k_cache, v_cache))
        ops.rope_kv_write(torch.cat((values, values, -values), 1), attention, batch)
        assert torch.equal(k_cache.view(-1, 32), values.to(dtype))
        assert torch.equal(v_cache.view(-1, 32), -values.to(dtype))


@pytest.mark.parametrize("page", [4, 16])
def test_copy_blocks(ops: NativeOps, page: int) -> None:
    cache = ops.key_cache((9, page, 2, 8), torch.float32, torch.device("cpu")).normal_()
    expected = cache.clone()
    sources, destinations = torch.tensor([1, 8, 1]), torch.tensor([0, 3, 4])
    ops.copy_blocks(cache, sources, destinations)
    REFERENCE.copy_blocks(expected, sources, destinations)
    assert torch.equal(cache, expected)
    with pytest.raises(IndexError):
        ops.copy_blocks(cache, torch.tensor([9]), torch.tensor([0]))
    assert torch.equal(cache, expected)
