"""Paged decode and prefill against float64 attention: odd lengths, every head dim, grouping, page, cache type and
option."""

from dataclasses import replace

import pytest
import torch
from inferd_kernels.ops import AttentionShape
from inferd_kernels.proof.guard import Guard
from inferd_kernels.proof.launches import DECODE_TILE, PREFILL_TILE, decode, prefill
from inferd_kernels.proof.problems import TOLERANCE, AttentionProblem, attention_problem, relative_error
from inferd_kernels.reference_gpu import attention

# 0, 1, page - 1, page, page + 1, a split boundary and its neighbours
LENS = [1, 0, 15, 16, 17, 31, 32, 33, 65]
TYPES = [
    (torch.float32, None),
    (torch.float16, None),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float8_e4m3fn),
    (torch.float16, torch.int8),
]


def shape(heads: int = 6, kv_heads: int = 2, dim: int = 32, window: int = 0, softcap: float = 0.0) -> AttentionShape:
    return AttentionShape(heads, kv_heads, dim, dim**-0.5, window, softcap)


def expected(problem: AttentionProblem) -> torch.Tensor:
    return attention(
        problem.q, problem.k_cache, problem.v_cache, problem.batch, problem.shape, problem.scales, problem.sinks
    )


def chunk(problem: AttentionProblem, first: int, last: int) -> AttentionProblem:
    """Query tokens first:last of a one-sequence problem, with the context that existed then."""
    batch = replace(
        problem.batch,
        positions=problem.batch.positions[first:last],
        cu_seqlens=torch.tensor([0, last - first], dtype=torch.int32),
        seq_lens=problem.batch.seq_lens - (problem.q.shape[0] - last),
    )
    return replace(problem, q=problem.q[first:last].clone(), batch=batch)


@pytest.mark.parametrize(("dtype", "cache"), TYPES)
def test_decode_over_odd_lengths(dtype: torch.dtype, cache: torch.dtype | None) -> None:
    problem = attention_problem([1] * len(LENS), LENS, shape(), dtype=dtype, cache=cache)
    with Guard() as guard:
        out = decode(problem)
    assert relative_error(out, expected(problem)) < TOLERANCE[dtype]
    assert (out[1] == 0).all()
    values = 2 * sum(LENS) * 2 * 32 * problem.k_cache.element_size()
    assert values <= guard.loaded < 2 * values + 60_000


@pytest.mark.parametrize(("dtype", "cache"), TYPES)
def test_prefill_over_odd_lengths(dtype: torch.dtype, cache: torch.dtype | None) -> None:
    problem = attention_problem([1, 15, 16, 17, 3], [1, 15, 33, 17, 40], shape(), dtype=dtype, cache=cache)
    with Guard():
        out = prefill(problem)
    assert relative_error(out, expected(problem)) < TOLERANCE[dtype]


@pytest.mark.parametrize("options", [{"window": 7}, {"window": 40}, {"softcap": 3.0}, {"window": 16, "softcap": 3.0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sinks", [False, True])
def test_window_cap_and_sinks(options: dict[str, float], sinks: bool, dtype: torch.dtype) -> None:
    for queries, lens, launch in (([1] * 4, [1, 17, 33, 80], decode), ([5, 20], [30, 47], prefill)):
        problem = attention_problem(queries, lens, shape(**options), dtype=dtype, sinks=sinks)
        with Guard():
            out = launch(problem)
        assert relative_error(out, expected(problem)) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [7, 16, 40])
def test_what_is_before_the_window_may_be_nan(window: int) -> None:
    """The blocks there may be those of another sequence by now."""
    for queries, lens, launch in (([1] * 4, [1, 17, 33, 80], decode), ([5, 20], [30, 67], prefill)):
        problem = attention_problem(queries, lens, shape(window=window), dtype=torch.float32)
        wanted, page = expected(problem), problem.k_cache.shape[1]
        for index, (count, length) in enumerate(zip(queries, lens, strict=True)):
            for position in range(max(length - count - window + 1, 0)):
                block = problem.batch.block_tables[index, position // page]
                for cache in (problem.k_cache, problem.v_cache):
                    cache[block, position % page] = float("nan")
        assert problem.k_cache.isnan().any()
        assert relative_error(launch(problem), wanted) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
def test_head_dims(dim: int) -> None:
    for queries, lens, launch in (([1, 1], [9, 40], decode), ([4], [19], prefill)):
        problem = attention_problem(queries, lens, shape(2, 1, dim), dtype=torch.bfloat16)
        with Guard():
            out = launch(problem)
        assert relative_error(out, expected(problem)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (8, 4), (6, 1), (7, 1), (16, 2), (16, 1)])
def test_grouped_heads(heads: int, kv_heads: int) -> None:
    for queries, lens, launch in (([1, 1], [9, 40], decode), ([4, 3], [19, 3], prefill)):
        problem = attention_problem(queries, lens, shape(heads, kv_heads), dtype=torch.float32)
        with Guard():
            out = launch(problem)
        assert relative_error(out, expected(problem)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("page", [16, 32, 64])
@pytest.mark.parametrize("tile", [16, 32, 64])
def test_pages_and_tiles(page: int, tile: int) -> None:
    problem = attention_problem([1, 1, 1], [page, page + 1, 2 * page - 1], shape(), page=page)
    with Guard():
        out = decode(problem, replace(DECODE_TILE, tile=tile, split=64))
    assert relative_error(out, expected(problem)) < TOLERANCE[torch.float32]
    problem = attention_problem([9], [page + 3], shape(), page=page)
    with Guard():
        out = prefill(problem, replace(PREFILL_TILE, tile=tile))
    assert relative_error(out, expected(problem)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("options", [{}, {"window": 20}])
def test_a_row_alone_equals_the_row_in_a_batch_bitwise(options: dict[str, float]) -> None:
    lens = [40, 9, 70]
    problem = attention_problem([1] * 3, lens, shape(**options), dtype=torch.bfloat16, sinks=True)
    together = decode(problem)
    for index in range(3):
        assert torch.equal(together[index], decode(problem.row(index))[0])


def test_the_bound_on_the_context_changes_no_bit() -> None:
    """One split written directly, merged alone, and among many empty ones: the same result."""
    problem = attention_problem([1] * 3, [5, 32, 20], shape(), dtype=torch.bfloat16, sinks=True)
    direct = decode(problem, max_seq_len=32)
    assert torch.equal(direct, decode(problem, max_seq_len=64))
    assert torch.equal(direct, decode(problem, max_seq_len=2000))


@pytest.mark.parametrize("options", [{}, {"window": 20}])
def test_a_prompt_in_chunks_equals_the_prompt_in_one_piece_bitwise(options: dict[str, float]) -> None:
    problem = attention_problem([41], [41], shape(**options), dtype=torch.bfloat16)
    whole = prefill(problem)
    pieces = [prefill(chunk(problem, first, last)) for first, last in ((0, 7), (7, 16), (16, 17), (17, 41))]
    assert torch.equal(whole, torch.cat(pieces))


def test_every_residue_of_the_tile_boundary() -> None:
    for length in range(17, 33):
        problem = attention_problem([6], [length], shape(2, 1))
        with Guard():
            out = prefill(problem)
        assert relative_error(out, expected(problem)) < TOLERANCE[torch.float32]


def test_small_value_scales_do_not_sink_in_half_precision() -> None:
    problem = attention_problem([1], [60], shape(), dtype=torch.bfloat16, cache=torch.float8_e4m3fn)
    assert problem.scales is not None
    tiny = replace(problem, scales=(problem.scales[0], problem.scales[1] * 1e-3))
    assert relative_error(decode(tiny), expected(tiny)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(("dtype", "cache"), TYPES)
def test_a_context_of_4097(dtype: torch.dtype, cache: torch.dtype | None) -> None:
    problem = attention_problem([1], [4097], shape(4, 1, 16), dtype=dtype, cache=cache)
    with Guard():
        out = decode(problem, replace(DECODE_TILE, tile=128, split=512))
    assert relative_error(out, expected(problem)) < TOLERANCE[dtype]
    problem = attention_problem([3], [4097], shape(4, 1, 16), dtype=dtype, cache=cache)
    with Guard():
        out = prefill(problem, replace(PREFILL_TILE, tile=128))
    assert relative_error(out, expected(problem)) < TOLERANCE[dtype]


@pytest.mark.parametrize("options", [{}, {"window": 50}])
def test_a_long_row_gets_longer_splits_instead_of_more(options: dict[str, float]) -> None:
    lens = [64, 65, 128, 129, 200, 0]
    tile = replace(DECODE_TILE, max_splits=2)
    problem = attention_problem([1] * 6, lens, shape(**options), dtype=torch.bfloat16, sinks=True)
    with Guard():
        out = decode(problem, tile)
    assert relative_error(out, expected(problem)) < TOLERANCE[torch.bfloat16]
    for index in (1, 4):
        assert torch.equal(out[index], decode(problem.row(index), tile, max_seq_len=1000)[0])


def test_head_dims_beyond_the_configurations_are_refused() -> None:
    problem = attention_problem([1], [3], shape(1, 1, 257))
    with pytest.raises(ValueError, match="the largest is 256"):
        decode(problem)


def test_a_cache_beyond_two_to_the_31_elements() -> None:
    """Memory is touched only where the table points, so 4.3 GB of each cache cost two blocks."""
    blocks, page, dim = 1_060_000, 16, 128
    small = attention_problem([1], [20], shape(2, 1, dim), dtype=torch.bfloat16)
    far = torch.tensor([[blocks - 1, blocks - 7]], dtype=torch.int32)
    caches = []
    for cache in (small.k_cache, small.v_cache):
        large = torch.empty(blocks, page, 1, dim, dtype=torch.bfloat16)
        large[far[0].long()] = cache[small.batch.block_tables[0].long()]
        caches.append(large)
    problem = replace(small, k_cache=caches[0], v_cache=caches[1], batch=replace(small.batch, block_tables=far))
    assert caches[0].numel() > 2**31
    assert torch.equal(decode(problem), decode(small))


def test_a_token_of_more_heads_than_a_tile_has_rows() -> None:
    """Falcon-7B: 71 query heads, one of keys and values."""
    problem = attention_problem([3, 18], [5, 33], shape(71, 1, 16))
    with Guard():
        out = prefill(problem)
    assert relative_error(out, expected(problem)) < TOLERANCE[torch.float32]
