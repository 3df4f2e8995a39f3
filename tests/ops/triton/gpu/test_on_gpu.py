"""What only a GPU can show. Never run so far: no machine of this project has one. `make kernels-gpu` runs it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inferd_kernels import reference, reference_gpu
from inferd_kernels.ops import AttentionShape, Ops, PagedBatch, SamplingBatch, load_ops
from inferd_kernels.proof import roofline
from inferd_kernels.proof.budgets import load_table
from inferd_kernels.proof.problems import QUANTIZED, TOLERANCE, AttentionProblem, attention_problem, relative_error

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
    if isinstance(value, (PagedBatch, SamplingBatch)):
        return type(value)(**{name: on_gpu(getattr(value, name)) for name in type(value).__dataclass_fields__})
    return value


def attend(ops: Ops, problem: AttentionProblem) -> torch.Tensor:
    return ops.paged_attention(
        on_gpu(problem.q), on_gpu(problem.k_cache), on_gpu(problem.v_cache), on_gpu(problem.batch), problem.shape,
        on_gpu(problem.scales), on_gpu(problem.sinks),
    )  # fmt: skip


def expected(problem: AttentionProblem) -> torch.Tensor:
    return reference_gpu.attention(
        problem.q, problem.k_cache, problem.v_cache, problem.batch, problem.shape, problem.scales, problem.sinks
    )


def milliseconds(function: Callable[[], object]) -> float:
    """Median of 50 runs in a captured graph."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    times = []
    for _ in range(50):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[25]


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
    expected_out, expected_hidden = reference.add_rms_norm(x, residual, weight[0], 1e-5)
    assert torch.equal(hidden.cpu(), expected_hidden)
    assert relative_error(out.cpu(), expected_out) < 4e-3
    assert relative_error(ops.silu_mul(x.cuda()).cpu(), reference.silu_mul(x)) < 4e-3


def test_sampled_tokens_numerics(ops: Ops) -> None:
    rows, vocab = 64, 128256
    numbers = torch.full((rows,), 0.8)
    batch = SamplingBatch(
        numbers, torch.full((rows,), 50, dtype=torch.int32), torch.full((rows,), 0.95), torch.zeros(rows),
        torch.arange(rows), torch.zeros(rows, dtype=torch.int32), torch.arange(rows), False,
    )  # fmt: skip
    logits = torch.randn(rows, vocab) * 3
    assert torch.equal(ops.sample(logits.cuda(), on_gpu(batch)).cpu(), reference.sample(logits, batch))


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
    moved = [on_gpu(item) for item in (problem.q, problem.k_cache, problem.v_cache)]
    batch = replace(on_gpu(problem.batch), max_seq_len=bound)
    eager = ops.paged_attention(*moved, batch, problem.shape)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = ops.paged_attention(*moved, batch, problem.shape)
    graph.replay()
    assert torch.equal(captured, eager)
    batch.seq_lens.copy_(torch.tensor([0, 17, 200, 1]))
    graph.replay()
    assert torch.equal(captured, ops.paged_attention(*moved, batch, problem.shape))


@pytest.mark.parametrize(("sequences", "context"), [(1, 8192), (16, 2048), (64, 4096)])
def test_decode_attention_reaches_the_roofline(ops: Ops, sequences: int, context: int) -> None:
    device = this_device()
    model = roofline.MODELS[0]
    shape = AttentionShape(model.heads, model.kv_heads, model.head_dim, 0.1)
    problem = attention_problem([1] * sequences, [16] * sequences, shape, dtype=torch.bfloat16)
    blocks = -(-context // 16)
    kv = [torch.randn(sequences * blocks, 16, 8, 128, device="cuda").bfloat16() for _ in range(2)]
    tables = torch.randperm(sequences * blocks, device="cuda").int().view(sequences, blocks)
    lens = torch.full((sequences,), context, dtype=torch.int32, device="cuda")
    batch = replace(on_gpu(problem.batch), block_tables=tables, seq_lens=lens, max_seq_len=context)
    q = problem.q.cuda()
    measured = milliseconds(lambda: ops.paged_attention(q, *kv, batch, shape)) / 1e3
    table = load_table(Path(__file__).parents[4] / "tools" / "kernel_budgets.json")[device.arch]
    modelled = roofline.decode_attention(device, model, table, sequences, context).time
    assert modelled / measured >= ROOFLINE_SHARE, f"{measured * 1e6:.1f} us, the model says {modelled * 1e6:.1f}"


def this_device() -> roofline.Device:
    name = torch.cuda.get_device_name().upper()
    key = next(key for key in ("H200", "H100", "A100") if key in name)
    return next(device for device in roofline.DEVICES if key in device.name)
