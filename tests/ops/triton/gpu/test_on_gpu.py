"""What only a GPU can show of the kernels (`make test-gpu`)."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from inferd_kernels import reference_gpu
from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, PagedBatch, Rope, SamplingBatch, load_ops
from inferd_kernels.proof import roofline
from inferd_kernels.proof.budgets import load_table
from inferd_kernels.proof.problems import QUANTIZED, TOLERANCE, AttentionProblem, attention_problem, relative_error
from inferd_kernels.proof.timing import decode_launches, prefill_launch, sampling_batch, seconds, this_device
from inferd_kernels.triton import linear
from inferd_kernels.triton.backend import TritonOps

REFERENCE, TRITON = Ops(), TritonOps()

pytestmark = pytest.mark.gpu

LENS = [1, 0, 15, 16, 17, 511, 512, 513, 4097]
ROOFLINE_SHARE = 0.70


@pytest.fixture(scope="module")
def ops() -> Ops:
    return load_ops("cuda")


def on_gpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if isinstance(value, tuple):
        return tuple(on_gpu(item) for item in value)
    if isinstance(value, (PagedBatch, SamplingBatch, Attention, KVCache)):
        return type(value)(**{name: on_gpu(getattr(value, name)) for name in type(value).__dataclass_fields__})
    return value


def attend(ops: Ops, problem: AttentionProblem) -> torch.Tensor:
    return ops.paged_attention(on_gpu(problem.q), on_gpu(problem.attention), on_gpu(problem.batch))


def expected(problem: AttentionProblem) -> torch.Tensor:
    return reference_gpu.attention(
        problem.q, problem.k_cache, problem.v_cache, problem.batch, problem.shape, problem.scales, problem.sinks
    )


@pytest.mark.parametrize("dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("cache", [None, *QUANTIZED])
@pytest.mark.parametrize("queries", [[1] * len(LENS), [1, 0, 15, 9, 17, 200, 512, 5, 1000]])
def test_attention_numerics(ops: Ops, dim: int, cache: torch.dtype | None, queries: list[int]) -> None:
    for options in ({}, {"window": 100}, {"softcap": 20.0}):
        shape = AttentionShape(8, 2, dim, dim**-0.5, **options)
        problem = attention_problem(queries, LENS, shape, dtype=torch.bfloat16, cache=cache, sinks=bool(options))
        assert relative_error(attend(ops, problem).cpu(), expected(problem)) < TOLERANCE[torch.bfloat16]


def test_row_numerics(ops: Ops) -> None:
    x, residual, weight = (torch.randn(7, 4096).bfloat16() for _ in range(3))
    out, hidden = ops.add_rms_norm(x.cuda(), residual.cuda(), weight[0].cuda(), 1e-5)
    expected_out, expected_hidden = REFERENCE.add_rms_norm(x, residual, weight[0], 1e-5)
    assert torch.equal(hidden.cpu(), expected_hidden)
    assert relative_error(out.cpu(), expected_out) < 4e-3
    assert relative_error(ops.activate_gated(x.cuda(), "silu").cpu(), REFERENCE.activate_gated(x, "silu")) < 4e-3


def test_sampled_tokens_numerics(ops: Ops) -> None:
    rows, vocab = 64, 128256
    numbers = torch.full((rows,), 0.8)
    batch = SamplingBatch(
        numbers, torch.full((rows,), 50, dtype=torch.int32), torch.full((rows,), 0.95), torch.zeros(rows),
        torch.arange(rows), torch.zeros(rows, dtype=torch.int32), torch.arange(rows), False,
    )  # fmt: skip
    logits = torch.randn(rows, vocab) * 3
    assert torch.equal(ops.sample(logits.cuda(), on_gpu(batch)).cpu(), REFERENCE.sample(logits, batch))


@pytest.mark.parametrize("cache", [None, torch.float8_e4m3fn])
def test_rows_are_bitwise_equal_over_batch_sizes(ops: Ops, cache: torch.dtype | None) -> None:
    lens = [37 * index % 3000 + 1 for index in range(64)]
    problem = attention_problem([1] * 64, lens, AttentionShape(8, 2, 128, 0.1), dtype=torch.bfloat16, cache=cache)
    together = attend(ops, problem)
    for index in (0, 5, 63):
        assert torch.equal(together[index], attend(ops, problem.row(index))[0])


@pytest.mark.parametrize("bound", [512, 4096])
def test_graph_replay_equals_eager(ops: Ops, bound: int) -> None:
    problem = attention_problem([1] * 4, [5, 100, 300, 511], AttentionShape(8, 2, 128, 0.1), dtype=torch.bfloat16)
    q, attention = on_gpu(problem.q), on_gpu(problem.attention)
    batch = replace(on_gpu(problem.batch), max_seq_len=bound)
    eager = ops.paged_attention(q, attention, batch)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.paged_attention(q, attention, batch)
    graph.replay()
    assert torch.equal(captured, eager)
    batch.seq_lens.copy_(torch.tensor([0, 17, 200, 1]))
    graph.replay()
    assert torch.equal(captured, ops.paged_attention(q, attention, batch))


def test_rope_kv_write_numerics(ops: Ops) -> None:
    shape = AttentionShape(8, 2, 128, 0.1)
    problem = attention_problem([1, 0, 40, 7], [9, 0, 40, 33], shape, dtype=torch.bfloat16)
    qkv = torch.randn(48, 12 * 128).bfloat16()
    rope = Rope(torch.rand(64, 128), 128)
    caches = [torch.zeros_like(problem.k_cache) for _ in range(2)]
    expected_q = REFERENCE.rope_kv_write(qkv, Attention(shape, KVCache(*caches), rope), problem.batch)
    moved = [torch.zeros_like(cache).cuda() for cache in caches]
    attention = Attention(shape, KVCache(*moved), Rope(rope.cos_sin.cuda(), 128))
    q = ops.rope_kv_write(qkv.cuda(), attention, on_gpu(problem.batch))
    assert relative_error(q.cpu(), expected_q) < 4e-3
    assert relative_error(moved[0].cpu(), caches[0]) < 4e-3
    assert torch.equal(moved[1].cpu(), caches[1])


@pytest.mark.parametrize("tokens", [1, 16, 33, 64, 100])
def test_matmul_numerics(ops: Ops, tokens: int) -> None:
    x, dense = torch.randn(tokens, 512).bfloat16(), torch.randn(300, 512)
    fp8 = linear.Fp8Weight(*on_gpu(reference_gpu.quantize_rows(dense, torch.float8_e4m3fn)))
    rows, scale = reference_gpu.quantize_rows(x, torch.float8_e4m3fn)
    expected = (rows.double() * scale.double()[:, None]) @ (
        fp8.values.cpu().double() * fp8.scale.cpu().double()[:, None]
    ).T
    assert relative_error(ops.linear(x.cuda(), fp8).cpu(), expected) < 8e-3
    packed = torch.randint(0, 256, (300, 256), dtype=torch.uint8)
    w4 = linear.W4Weight(packed.cuda(), torch.rand(300, 4).cuda(), None)
    expected = x.double() @ reference_gpu.unpack_w4(packed, w4.scale.cpu(), None, torch.float64).T
    assert relative_error(ops.linear(x.cuda(), w4).cpu(), expected) < 8e-3


def test_experts_numerics(ops: Ops) -> None:
    x, logits = torch.randn(33, 256).bfloat16(), torch.randn(33, 8)
    logits[:, 3] = -9.0
    gate_up, down = (torch.randn(8, 256, 256) / 16).bfloat16(), (torch.randn(8, 256, 128) / 11).bfloat16()
    routes = ops.route(logits.cuda(), 2, True)
    out = ops.experts(x.cuda(), ops.prepare_experts(gate_up.cuda(), down.cuda(), "silu"), routes)
    weights = REFERENCE.prepare_experts(gate_up.double(), down.double(), "silu")
    assert relative_error(out.cpu(), REFERENCE.experts(x.double(), weights, REFERENCE.route(logits, 2, True))) < 1e-2


def test_logits_edits_numerics(ops: Ops) -> None:
    logits, rows = torch.randn(5, 1000), torch.tensor([3, 0], dtype=torch.int32)
    tokens = torch.stack([torch.randperm(1000)[:50] for _ in range(2)]).int()
    counts = torch.randint(0, 3, (2, 50)).int()
    penalties = torch.tensor([1.3, 1.0]), torch.tensor([0.5, 0.0]), torch.tensor([0.25, 1.0])
    bits = torch.randint(-(2**31), 2**31, (2, 32)).int()
    moved = logits.cuda()
    ops.penalize(moved, *on_gpu((rows, tokens, counts, *penalties)))
    ops.mask_tokens(moved, *on_gpu((rows, bits)))
    REFERENCE.penalize(logits, rows, tokens, counts, *penalties)
    REFERENCE.mask_tokens(logits, rows, bits)
    assert torch.allclose(moved.cpu(), logits, rtol=1e-6, atol=1e-6)


def test_copied_blocks_numerics(ops: Ops) -> None:
    cache = torch.randn(9, 16, 3, 50).bfloat16()
    moved, (sources, destinations) = cache.cuda(), on_gpu((torch.tensor([1, 2]), torch.tensor([8, 5])))
    ops.copy_blocks(moved, sources, destinations)
    cache[torch.tensor([8, 5])] = cache[torch.tensor([1, 2])]
    assert torch.equal(moved.cpu(), cache)


def test_rows_of_norms_draws_and_small_matmuls_are_bitwise_equal_over_batch_sizes(ops: Ops) -> None:
    x, weight = torch.randn(16, 4096, device="cuda").bfloat16(), torch.rand(4096, device="cuda").bfloat16()
    fp8 = linear.Fp8Weight(*linear.quantize_rows(torch.randn(512, 4096, device="cuda"), torch.float8_e4m3fn))
    logits, batch = torch.randn(16, 128256, device="cuda"), sampling_batch(16, True)
    norms, products, draws = TRITON.rms_norm(x, weight, 1e-5), ops.linear(x, fp8), ops.sample(logits, batch)
    for row in (0, 7, 15):
        one = slice(row, row + 1)
        fields = {name: getattr(batch, name)[one] for name in batch.__dataclass_fields__ if name != "all_greedy"}
        assert torch.equal(norms[one], TRITON.rms_norm(x[one], weight, 1e-5))
        assert torch.equal(products[one], ops.linear(x[one], fp8))
        assert torch.equal(draws[one], ops.sample(logits[one], SamplingBatch(**fields, all_greedy=False)))


@pytest.mark.parametrize("page", [16, 256])
@pytest.mark.parametrize("window", [0, 100])
@pytest.mark.parametrize("queries", [[1] * 6, [1, 1, 40, 9, 17, 200]])
def test_torchs_varlen_attention_agrees(ops: Ops, page: int, window: int, queries: list[int]) -> None:
    shape = AttentionShape(8, 2, 128, 0.09, window=window)
    problem = attention_problem(queries, [5, 700, 40, 90, 1000, 4097], shape, page=page, dtype=torch.bfloat16)
    oracle = load_ops("cuda", "varlen")
    q, *caches = [on_gpu(item).nan_to_num(0.0) for item in (problem.q, problem.k_cache, problem.v_cache)]
    attention, batch = Attention(shape, KVCache(*caches)), on_gpu(problem.batch)
    theirs = oracle.paged_attention(q, attention, batch)
    assert relative_error(ops.paged_attention(q, attention, batch).cpu(), theirs.cpu()) < TOLERANCE[torch.bfloat16]


@pytest.fixture(scope="module")
def modelled() -> tuple[roofline.Device, dict[str, dict[str, int]]]:
    device = this_device()
    assert device is not None, "the roofline model does not know this GPU"
    return device, load_table(Path(__file__).parents[4] / "tools" / "kernel_budgets.json")[device.arch]


@pytest.mark.parametrize(("sequences", "context"), [(1, 8192), (16, 2048), (64, 4096)])
def test_a_decode_step_reaches_the_roofline(
    ops: Ops, modelled: tuple[roofline.Device, dict[str, dict[str, int]]], sequences: int, context: int
) -> None:
    device, table = modelled
    estimates = {
        item.kernel: item.time for item in roofline.decode_step(device, roofline.MODELS[0], table, sequences, context)
    }
    launches = decode_launches(ops, roofline.MODELS[0], sequences, context)
    shares = {kernel: estimates[kernel] / seconds(make) for kernel, make in launches.items()}
    assert {kernel: reached for kernel, reached in shares.items() if reached < ROOFLINE_SHARE} == {}


@pytest.mark.parametrize("tokens", [1024, 8192])
def test_prefill_reaches_the_roofline(
    ops: Ops, modelled: tuple[roofline.Device, dict[str, dict[str, int]]], tokens: int
) -> None:
    device, table = modelled
    estimate = roofline.prefill_attention(device, roofline.MODELS[0], table, tokens).time
    assert estimate / seconds(partial(prefill_launch, ops, roofline.MODELS[0], tokens)) >= ROOFLINE_SHARE
