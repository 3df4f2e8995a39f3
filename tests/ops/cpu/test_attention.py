"""Paged attention against the reference, and bit for bit over batches, chunks and threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, PagedBatch

REFERENCE = Ops()

SHAPES = {
    "gqa3": AttentionShape(9, 3, 64, 0.125),
    "mha": AttentionShape(2, 2, 80, 0.11),
    "mqa": AttentionShape(8, 1, 128, 0.09),
    "odd": AttentionShape(4, 2, 24, 0.2),
    "window": AttentionShape(4, 2, 32, 0.17, window=37),
    "softcap": AttentionShape(4, 2, 32, 0.9, softcap=5.0),
}


PAGES = [5, 16, 48]  # keys lie row by row in the first, in lanes in the others
CPU = torch.device("cpu")


def caches_for(
    ops: NativeOps, batch: PagedBatch, shape: AttentionShape, page: int, dtype: torch.dtype
) -> list[torch.Tensor]:
    """Random keys and values where a sequence has context; NaN everywhere else."""
    blocks = int(batch.block_tables.max()) + 2
    caches = [torch.full((blocks * page, shape.num_kv_heads, shape.head_dim), float("nan")) for _ in range(2)]
    for table, length in zip(batch.block_tables, batch.seq_lens.tolist(), strict=True):
        positions = torch.arange(length)
        slots = table[positions // page].long() * page + positions % page
        for cache in caches:
            cache[slots] = torch.randn(length, *cache.shape[1:])
    keys, values = (cache.view(blocks, page, *cache.shape[1:]).to(dtype) for cache in caches)
    return [ops.key_cache(tuple(keys.shape), dtype, CPU).copy_(keys), values]


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("page", PAGES)
def test_matches_the_reference(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], name: str, dtype: torch.dtype, page: int
) -> None:
    shape = SHAPES[name]
    batch = paged_batch([1, 1, 1, 3, 70], [1, 64, 150, 67, 131], page=page)
    k_cache, v_cache = caches_for(ops, batch, shape, page, dtype)
    q = torch.randn(76, shape.num_heads, shape.head_dim)
    out = ops.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
    expected = REFERENCE.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", SHAPES)
def test_keys_in_lanes_and_row_by_row_give_the_same_bits(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], name: str
) -> None:
    shape = SHAPES[name]
    for lengths in ([1, 1, 1], [1, 7, 70]):
        batch = paged_batch(lengths, [16, 64, 150], page=16)
        in_lanes, v_cache = caches_for(ops, batch, shape, 16, torch.float16)
        by_row = in_lanes.contiguous()
        assert by_row.stride() != in_lanes.stride()
        q = torch.randn(sum(lengths), shape.num_heads, shape.head_dim)
        out = [
            ops.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch) for k_cache in (in_lanes, by_row)
        ]
        assert torch.equal(*out)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_the_same_alone_in_a_batch_and_in_any_chunk(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], name: str
) -> None:
    shape, length = SHAPES[name], 150
    batch = paged_batch([length], [length], page=16)
    k_cache, v_cache = caches_for(ops, batch, shape, 16, torch.float32)
    q = torch.randn(length, shape.num_heads, shape.head_dim)
    whole = ops.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
    for chunk, stride in ((1, 7), (3, 11), (29, 29), (64, 43)):
        for end in range(chunk, length + 1, stride):
            part = replace(
                batch,
                positions=batch.positions[end - chunk : end],
                slots=batch.slots[end - chunk : end],
                cu_seqlens=torch.tensor([0, chunk], dtype=torch.int32),
                seq_lens=torch.tensor([end], dtype=torch.int32),
            )
            out = ops.paged_attention(q[end - chunk : end], Attention(shape, KVCache(k_cache, v_cache)), part)
            assert torch.equal(out, whole[end - chunk : end])
    many = replace(
        batch,
        positions=torch.tensor([149, 70, 3]),
        slots=batch.slots[[149, 70, 3]],
        cu_seqlens=torch.arange(4, dtype=torch.int32),
        seq_lens=torch.tensor([150, 71, 4], dtype=torch.int32),
        block_tables=batch.block_tables.repeat(3, 1),
    )
    attention = Attention(shape, KVCache(k_cache, v_cache))
    assert torch.equal(ops.paged_attention(q[[149, 70, 3]], attention, many), whole[[149, 70, 3]])


def test_threads_do_not_change_a_bit(
    engines: dict[tuple[str, int], NativeOps], paged_batch: Callable[..., PagedBatch]
) -> None:
    """One long sequence is cut into tiles for two threads; eight short ones are not."""
    shape = SHAPES["gqa3"]
    for lengths in ([700], [70 + i for i in range(8)]):
        batch = paged_batch([1] * len(lengths), lengths, page=16)
        k_cache, v_cache = caches_for(next(iter(engines.values())), batch, shape, 16, torch.float16)
        q = torch.randn(len(lengths), shape.num_heads, shape.head_dim)
        for isa in {isa for isa, _ in engines}:
            one = engines[isa, 1].paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
            assert torch.equal(
                one, engines[isa, 2].paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
            )


def test_blocks_behind_the_window_may_be_gone(ops: NativeOps, paged_batch: Callable[..., PagedBatch]) -> None:
    shape = SHAPES["window"]
    batch = paged_batch([1], [200], page=16)
    k_cache, v_cache = caches_for(ops, batch, shape, 16, torch.float32)
    q = torch.randn(1, 4, 32)
    expected = ops.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch)
    batch.block_tables[0, : (200 - 37) // 16] = -1
    assert torch.equal(ops.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache)), batch), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_before_the_window_may_be_nan(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], dtype: torch.dtype
) -> None:
    """The blocks there may be those of another sequence by now."""
    shape, page = SHAPES["window"], 16
    for queries, length in ((1, 200), (40, 200), (70, 131)):
        batch = paged_batch([queries], [length], page=page)
        k_cache, v_cache = caches_for(ops, batch, shape, page, dtype)
        q, attention = torch.randn(queries, 4, 32), Attention(shape, KVCache(k_cache, v_cache))
        expected = ops.paged_attention(q, attention, batch)
        for position in range(length - queries - 37 + 1):
            block = batch.block_tables[0, position // page]
            k_cache[block, position % page] = v_cache[block, position % page] = float("nan")
        assert k_cache.isnan().any()
        assert torch.equal(ops.paged_attention(q, attention, batch), expected)
        torch.testing.assert_close(REFERENCE.paged_attention(q, attention, batch), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("page", PAGES)
def test_an_8_bit_cache_is_written_bit_for_bit_and_read_as_the_reference_does(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], name: str, page: int
) -> None:
    shape = SHAPES[name]
    batch = paged_batch([1, 1, 1, 3, 70], [1, 64, 150, 67, 131], page=page)
    blocks, width = int(batch.block_tables.max()) + 2, (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv, zero = torch.randn(76, width), torch.zeros(shape.num_kv_heads * shape.head_dim)
    qkv[3, -len(zero) :] = zero  # a token whose values are all 0
    held = []
    for backend in (ops, REFERENCE):
        generator = torch.Generator().manual_seed(1)
        size = (blocks, page, shape.num_kv_heads)
        caches = [torch.randint(-127, 128, (*size, shape.head_dim), generator=generator).to(torch.int8) for _ in "kv"]
        caches[0] = ops.key_cache(tuple(caches[0].shape), torch.int8, CPU).copy_(caches[0])
        scales = torch.rand(size, generator=generator) / 50, torch.rand(size, generator=generator) / 50
        attention = Attention(shape, KVCache(*caches, scales))
        q = backend.rope_kv_write(qkv, attention, batch)
        held.append((*caches, *scales, backend.paged_attention(q, attention, batch)))
    *written, out = held[0]
    *expected, attended = held[1]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(written, expected, strict=True))
    torch.testing.assert_close(out, attended, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("dim", [24, 64, 80, 128, 256, 300])
@pytest.mark.parametrize("options", [{"window": 20}, {"softcap": 5.0}, {"window": 33, "softcap": 3.0}])
@pytest.mark.parametrize("sinks", [False, True])
def test_window_cap_and_sinks_for_every_head_size(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], dim: int, options: dict[str, float], sinks: bool
) -> None:
    shape = AttentionShape(6, 2, dim, dim**-0.5, **options)
    batch = paged_batch([1, 1, 3, 30], [1, 150, 67, 70], page=16)
    caches = caches_for(ops, batch, shape, 16, torch.float16)
    attention = Attention(shape, KVCache(*caches), sinks=torch.randn(6) * 3 if sinks else None)
    q = torch.randn(35, 6, dim) * 2
    out, expected = (backend.paged_attention(q, attention, batch) for backend in (ops, REFERENCE))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


def test_the_references_sinks_are_logits_without_values(paged_batch: Callable[..., PagedBatch]) -> None:
    """As gpt-oss defines them, in float64: softmax over the scores and the sink, whose weight goes nowhere."""
    shape, batch = AttentionShape(4, 2, 8, 0.4), paged_batch([1, 3], [5, 9], page=4)
    blocks = int(batch.block_tables.max()) + 1
    k_cache, v_cache = torch.randn(blocks, 4, 2, 8), torch.randn(blocks, 4, 2, 8)
    sinks, q = torch.tensor([-2.0, 0.0, 1.0, 30.0]), torch.randn(4, 4, 8)
    out = REFERENCE.paged_attention(q, Attention(shape, KVCache(k_cache, v_cache), sinks=sinks), batch)
    for row, (sequence, length) in enumerate([(0, 5), (1, 7), (1, 8), (1, 9)]):
        keys, values = (
            cache[batch.block_tables[sequence, :3].clamp(min=0)].flatten(0, 1)[:length].double()
            for cache in (k_cache, v_cache)
        )
        for head in range(4):
            scores = (keys[:, head // 2] @ q[row, head].double() * 0.4).exp()
            weights = scores / (scores.sum() + sinks[head].double().exp())
            torch.testing.assert_close(out[row, head].double(), weights @ values[:, head // 2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sinks", [False, True])
def test_a_padded_row_without_context_is_zero(
    ops: NativeOps, paged_batch: Callable[..., PagedBatch], sinks: bool
) -> None:
    shape, batch = SHAPES["gqa3"], paged_batch([1, 1], [9, 1], page=16)
    caches = caches_for(ops, batch, shape, 16, torch.float32)
    batch.seq_lens[1] = 0
    batch.block_tables[1] = -1
    attention = Attention(shape, KVCache(*caches), sinks=torch.zeros(9) if sinks else None)
    out = ops.paged_attention(torch.randn(2, 9, 64), attention, batch)
    assert out[0].isfinite().all()
    assert not out[1].any()


def test_sinks_keep_a_row_the_same_alone_and_in_a_batch(
    engines: dict[tuple[str, int], NativeOps], paged_batch: Callable[..., PagedBatch]
) -> None:
    shape, lengths = SHAPES["mqa"], [700, 3, 90]
    batch, sinks = paged_batch([1, 1, 1], lengths, page=16), torch.randn(8)
    q = torch.randn(3, 8, 128)
    for native in engines.values():
        attention = Attention(shape, KVCache(*caches_for(native, batch, shape, 16, torch.float16)), sinks=sinks)
        together = native.paged_attention(q, attention, batch)
        for row, length in enumerate(lengths):
            one = replace(
                paged_batch([1], [length], page=16), block_tables=batch.block_tables[row : row + 1].contiguous()
            )
            assert torch.equal(native.paged_attention(q[row : row + 1], attention, one), together[row : row + 1])


@pytest.mark.parametrize(("heads", "kv_heads", "new", "length"), [(32, 8, 1, 200_000), (8, 2, 30, 40_000)])
def test_memory_to_work_in_is_bounded_counted_and_returned(
    engines: dict[tuple[str, int], NativeOps],
    paged_batch: Callable[..., PagedBatch],
    heads: int,
    kv_heads: int,
    new: int,
    length: int,
) -> None:
    """Two threads take a long context in several passes, with the bits of one thread. A pass for all of it would take
    twice as much, and four times."""
    shape, page = AttentionShape(heads, kv_heads, 128, 0.09), 64
    batch = paged_batch([new], [length], page=page)
    batch = replace(batch, block_tables=torch.zeros_like(batch.block_tables))
    for isa in {isa for isa, _ in engines}:
        one, two = engines[isa, 1], engines[isa, 2]
        keys, values = (torch.randn(1, page, kv_heads, 128) for _ in range(2))
        k_cache = two.key_cache((1, page, kv_heads, 128), torch.float32, CPU).copy_(keys)
        q = torch.randn(new, heads, 128)
        two.release()
        attention = Attention(shape, KVCache(k_cache, values))
        out = two.paged_attention(q, attention, batch)
        assert torch.equal(out, one.paged_attention(q, attention, batch))
        held = two.engine.scratch_bytes
        assert 16 << 20 < held <= two.attention_bytes(heads, kv_heads, 128) + 4096 < 48 << 20
        two.release()
        assert two.engine.scratch_bytes == 0
        assert torch.equal(out, two.paged_attention(q, attention, batch))


def test_without_memory_for_partial_results_the_bits_are_the_same() -> None:
    """In a process that may take a few more megabytes."""
    code = """
import resource, torch
from inferd_kernels.cpu.engine import NativeEngine
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Attention, AttentionShape, KVCache, PagedBatch
torch.set_num_threads(1)
ops, shape, length = NativeOps(NativeEngine(2)), AttentionShape(32, 8, 128, 0.09), 50_000
batch = PagedBatch(
    torch.tensor([length - 1]), torch.tensor([0]), torch.tensor([0, 1], dtype=torch.int32),
    torch.tensor([length], dtype=torch.int32), torch.zeros(1, 3125, dtype=torch.int32), 1, 1, length,
)
keys, values, q = torch.randn(1, 16, 8, 128), torch.randn(1, 16, 8, 128), torch.randn(1, 32, 128)
attention = Attention(shape, KVCache(keys, values))
expected = ops.paged_attention(q, attention, batch)
ops.release()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (8 << 20), resource.RLIM_INFINITY))
print(torch.equal(ops.paged_attention(q, attention, batch), expected), ops.engine.scratch_bytes < 8 << 20)
"""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    output = subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)
    assert output.split() == ["True", "True"]
