"""The kernels of a decode step on random values, and how long a GPU takes for them, beside `roofline`."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
import torch.nn.functional as F

from inferd_kernels.ops import Attention, AttentionShape, KVCache, Ops, PagedBatch, Rope, SamplingBatch
from inferd_kernels.proof.roofline import DEVICES, Device, Model
from inferd_kernels.triton import library
from inferd_kernels.triton.linear import W4Weight, quantize_rows
from inferd_kernels.weights import Fp8Weight

Launch: TypeAlias = Callable[[], object]
MakeLaunch: TypeAlias = Callable[[], Launch]  # with inputs of its own
REPEATS = 50
COPIES = 4
COLD_BYTES = 256 << 20  # written between two runs: more than any cache holds
PAGE = 16
FP8 = torch.float8_e4m3fn


def this_device() -> Device | None:
    """The GPU of this machine, if the roofline model knows it."""
    name = torch.cuda.get_device_name().upper() if torch.cuda.is_available() else ""
    return next((device for device in DEVICES if device.name.split()[0] in name), None)


def seconds(make: MakeLaunch) -> float:
    """Median time of one launch among COPIES in a captured graph, whose inputs no cache holds.

    One launch per graph would measure the launch of the graph, 2 to 4 us on an H100, in which small kernels vanish.
    """
    launches = [make() for _ in range(COPIES)]
    launches[0]()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    cold = torch.empty(COLD_BYTES, dtype=torch.uint8, device="cuda")
    times: list[float] = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        cold.zero_()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / COPIES)
    return statistics.median(times)


def random(*size: int) -> torch.Tensor:
    return torch.randn(size, device="cuda", dtype=torch.bfloat16)


def decode_batch(batch: int, context: int) -> PagedBatch:
    blocks = -(-context // PAGE)
    rows = torch.arange(batch, device="cuda")
    return PagedBatch(
        positions=rows * 0 + context - 1,
        slots=rows * blocks * PAGE + context - 1,
        cu_seqlens=torch.arange(batch + 1, device="cuda", dtype=torch.int32),
        seq_lens=torch.full((batch,), context, device="cuda", dtype=torch.int32),
        block_tables=torch.randperm(batch * blocks, device="cuda").int().view(batch, blocks),
        num_decodes=batch,
        max_query_len=1,
        max_seq_len=context,
    )


def decode_launches(ops: Ops, model: Model, batch: int, context: int) -> dict[str, MakeLaunch]:
    """Keyed as in roofline.decode_step."""
    width = model.head_dim
    matmuls = {
        "qkv": ((model.heads + 2 * model.kv_heads) * width, model.hidden),
        "o": (model.hidden, model.heads * width),
        "gate_up": (2 * model.inner, model.hidden),
        "down": (model.hidden, model.inner),
        "lm_head (once)": (model.vocab, model.hidden),
    }
    return {
        "decode attention": partial(decode_attention, ops, model, batch, context),
        **{name: partial(_matmul, ops, batch, *size) for name, size in matmuls.items()},
        "rope + KV write": partial(_rope, ops, model, batch, context),
        "add + RMS norm (two per layer)": partial(_norm, ops, model, batch),
        "SiLU * up": partial(_silu, ops, model, batch),
        "sample, no filter": partial(_sample, ops, batch, False),
        "sample, top-k and top-p": partial(_sample, ops, batch, True),
    }


def _shape(model: Model) -> AttentionShape:
    return AttentionShape(model.heads, model.kv_heads, model.head_dim, model.head_dim**-0.5)


def _cache(model: Model, blocks: int) -> KVCache:
    k, v = (random(blocks, PAGE, model.kv_heads, model.head_dim) for _ in range(2))
    return KVCache(k, v)


def decode_attention(ops: Ops, model: Model, batch: int, context: int) -> Launch:
    step, shape = decode_batch(batch, context), _shape(model)
    attention = Attention(shape, _cache(model, step.block_tables.numel()))
    q = random(batch, model.heads, model.head_dim)
    return lambda: ops.paged_attention(q, attention, step)


def fp8_attention(model: Model, batch: int, context: int) -> Launch:
    """Decode attention over an fp8 cache."""
    step, shape = decode_batch(batch, context), _shape(model)
    size = (step.block_tables.numel(), PAGE, model.kv_heads, model.head_dim)
    caches = [random(*size).to(FP8) for _ in range(2)]
    scales = [torch.rand(size[:3], device="cuda") for _ in range(2)]
    q = random(batch, model.heads, model.head_dim)
    return lambda: library.paged_attention(
        q,
        *caches,
        *scales,
        None,
        step.cu_seqlens,
        step.seq_lens,
        step.block_tables,
        batch,
        context,
        shape.scale,
        0,
        0.0,
    )


def prefill_launch(ops: Ops, model: Model, tokens: int) -> Launch:
    """Attention of one prompt without a prefix."""
    shape, blocks = _shape(model), -(-tokens // PAGE)
    step = PagedBatch(
        positions=torch.arange(tokens, device="cuda"),
        slots=torch.arange(tokens, device="cuda"),
        cu_seqlens=torch.tensor([0, tokens], device="cuda", dtype=torch.int32),
        seq_lens=torch.tensor([tokens], device="cuda", dtype=torch.int32),
        block_tables=torch.arange(blocks, device="cuda", dtype=torch.int32).view(1, blocks),
        num_decodes=0,
        max_query_len=tokens,
        max_seq_len=tokens,
    )
    attention = Attention(shape, _cache(model, blocks))
    q = random(tokens, model.heads, model.head_dim)
    return lambda: ops.paged_attention(q, attention, step)


def contiguous_prefill(model: Model, tokens: int) -> Launch:
    """The same attention through torch's FlashAttention, over keys and values without pages."""
    q = random(1, model.heads, tokens, model.head_dim)
    k, v = (random(1, model.kv_heads, tokens, model.head_dim) for _ in range(2))
    return lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def _matmul(ops: Ops, batch: int, columns: int, depth: int) -> Launch:
    x, weight = random(batch, depth), random(columns, depth)
    return lambda: ops.linear(x, weight)


def fp8_matmul(ops: Ops, model: Model, batch: int) -> Launch:
    """gate_up with 8-bit weights."""
    x, weight = random(batch, model.hidden), Fp8Weight(*quantize_rows(random(2 * model.inner, model.hidden), FP8))
    return lambda: ops.linear(x, weight)


def w4_matmul(ops: Ops, model: Model, batch: int) -> Launch:
    """gate_up with 4-bit weights in groups of 128."""
    columns, depth = 2 * model.inner, model.hidden
    packed = torch.randint(0, 256, (columns, depth // 2), device="cuda", dtype=torch.uint8)
    x, weight = random(batch, depth), W4Weight(packed, torch.rand(columns, depth // 128, device="cuda"), None)
    return lambda: ops.linear(x, weight)


def _rope(ops: Ops, model: Model, batch: int, context: int) -> Launch:
    step, shape = decode_batch(batch, context), _shape(model)
    qkv = random(batch, (model.heads + 2 * model.kv_heads) * model.head_dim)
    rope = Rope(torch.rand(context, model.head_dim, device="cuda"), model.head_dim)
    attention = Attention(shape, _cache(model, step.block_tables.numel()), rope)
    return lambda: ops.rope_kv_write(qkv, attention, step)


def _norm(ops: Ops, model: Model, batch: int) -> Launch:
    x, weight = random(batch, model.hidden), random(model.hidden)
    return lambda: ops.add_rms_norm(x, x, weight, 1e-5)


def _silu(ops: Ops, model: Model, batch: int) -> Launch:
    inner = random(batch, 2 * model.inner)
    return lambda: ops.activate_gated(inner, "silu")


def _sample(ops: Ops, batch: int, filtered: bool) -> Launch:
    logits, parameters = random(batch, 128256), sampling_batch(batch, filtered)
    return lambda: ops.sample(logits, parameters)


def sampling_batch(rows: int, filtered: bool) -> SamplingBatch:
    """Every row draws at temperature 0.8."""

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((rows,), value, dtype=dtype, device="cuda")

    return SamplingBatch(
        temperature=column(0.8, torch.float32),
        top_k=column(50 if filtered else 0, torch.int32),
        top_p=column(0.95 if filtered else 1.0, torch.float32),
        min_p=column(0.0, torch.float32),
        seeds=torch.arange(rows, device="cuda"),
        choices=column(0, torch.int32),
        positions=column(7, torch.int64),
        all_greedy=False,
    )
