"""Time of every native op against the measured limits of the machine: streaming reads and register arithmetic."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from inferd_kernels.cpu import library
from inferd_kernels.cpu.convert import PackedWeight
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.operands import (
    Attention,
    AttentionShape,
    ExpertWeights,
    KVCache,
    PagedBatch,
    Rope,
    Routes,
    SamplingBatch,
)
from inferd_kernels.weights import QuantizedWeight

READ_BYTES, FLOAT_ROUNDS, BYTE_ROUNDS = range(3)
BUFFER_BYTES = 256 << 20  # well beyond the caches
ROUNDS = 200_000
CHAINS, LANES = 12, 16
PAGE = 16
BELOW_ONE = 0x3B  # bytes masked with it never make a float16 of 1 or more, nor one that is not finite
COPIED_BLOCKS = 256
COPIES_BYTES = 128 << 20  # a matrix is rotated through copies of this size, so that it comes from memory


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes per second read from memory; float32 and 8-bit operations per second, a product and a sum being two."""

    read: float
    float_ops: float
    byte_ops: float


@dataclass(frozen=True, slots=True)
class Work:
    """One call: what it must read and write at least, and its arithmetic."""

    op: str
    shape: str
    run: Callable[[], object]
    num_bytes: float
    float_ops: float = 0.0
    byte_ops: float = 0.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """Best time of one call. share: of the time that the slower of the limits allows, 1.0 is the machine's limit."""

    op: str
    shape: str
    seconds: float
    bytes_per_second: float
    ops_per_second: float
    share: float


def best_time(run: Callable[[], object], seconds: float) -> float:
    """The shortest of the calls made in `seconds`, at least three."""
    best, end = float("inf"), time.perf_counter() + seconds
    for count in itertools.count():
        start = time.perf_counter()
        if count >= 3 and start > end:
            return best
        run()
        best = min(best, time.perf_counter() - start)
    raise AssertionError


def measure_limits(ops: NativeOps, seconds: float = 0.5) -> Limits:
    memory = torch.ones(BUFFER_BYTES, dtype=torch.uint8)
    out = torch.zeros(64 * ops.engine.threads, dtype=torch.uint8)

    def rate(kind: int, amount: int, total: float) -> float:
        args = library.LimitsArgs(memory.data_ptr(), out.data_ptr(), amount, kind)
        return total / best_time(lambda: ops.engine.call("limits", args), seconds)

    operations = 2.0 * CHAINS * LANES * ROUNDS * ops.engine.threads
    return Limits(
        read=rate(READ_BYTES, BUFFER_BYTES, BUFFER_BYTES),
        float_ops=rate(FLOAT_ROUNDS, ROUNDS, operations),
        byte_ops=rate(BYTE_ROUNDS, ROUNDS, operations * 32),
    )


def measure(ops: NativeOps, limits: Limits, seconds: float = 0.2, match: str = "") -> Iterator[Measurement]:
    """Every op whose name contains `match`, at the shapes of a small decoder (576 wide, 9 heads of 64 over 3, MLP 1536,
    49,152 tokens)."""
    works = [linear_work(ops), attention_work(ops), row_work(ops), sample_work(ops)]
    if match in "experts":  # they take 350 MB and some seconds to make
        works.append(experts_work(ops))
    for work in itertools.chain(*works):
        if match not in work.op:
            continue
        taken = best_time(work.run, seconds)
        least = max(work.num_bytes / limits.read, work.float_ops / limits.float_ops + work.byte_ops / limits.byte_ops)
        rate = (work.float_ops + work.byte_ops) / taken
        yield Measurement(work.op, work.shape, taken, work.num_bytes / taken, rate, least / taken)


def linear_work(ops: NativeOps) -> Iterator[Work]:
    """The demo model's matrices at many numbers of rows, then every other format of the library at two."""
    all_counts: tuple[int, ...] = (1, 4, 16, 64, 256)
    matrices = [(kind, 3072, 576, all_counts) for kind in ("q4_1", "f32", "bf16")]
    matrices += [("q4_1", 576, 1536, all_counts), ("q8_0", 49152, 576, (1, 16))]
    matrices += [(kind, 2048, 1024, (1, 16)) for kind in library.FORMATS if kind not in ("q4_1", "q8_0", "f32", "bf16")]
    for kind, rows, width, counts in matrices:
        weight = _weight(ops, kind, rows, width)
        num_bytes = weight.blocks.nbytes
        copies = itertools.cycle([weight, *(_copy(ops, weight) for _ in range(min(60, COPIES_BYTES // num_bytes)))])
        for count in counts:
            x = torch.randn(count, width)
            operations = 2.0 * count * rows * width * (2 if kind == "q8_0" else 1)
            yield Work(
                f"linear {kind}",
                f"{count}x{width} -> {rows}",
                partial(_rotate, ops, x, copies),
                num_bytes + 4.0 * count * (rows + width),
                *((operations, 0.0) if kind in ("f32", "bf16") else (0.0, operations)),
            )


def experts_work(ops: NativeOps) -> Iterator[Work]:
    """A layer of Qwen3-30B-A3B in q4_k: 128 experts of 768, 8 per token. Every call goes to other experts."""
    count, top_k, width, inner = 128, 8, 2048, 768
    gate_up, down = _weight(ops, "q4_k", 2 * inner, width), _weight(ops, "q4_k", width, inner)
    first, second = ([_copy(ops, weight) for _ in range(count)] for weight in (gate_up, down))
    experts = ops.prepare_experts(first, second, "silu")
    per_expert = gate_up.nbytes + down.nbytes
    for tokens in (1, 4, 16, 512):
        routes = []
        for _ in range(64):
            ids = torch.stack([torch.randperm(count)[:top_k] for _ in range(tokens)]).int()
            routes.append(Routes(ids, torch.full(ids.shape, 1 / top_k)))
        visited = sum(route.ids.unique().numel() for route in routes) / len(routes)
        x = torch.randn(tokens, width)
        yield Work(
            "experts q4_k",
            f"{tokens}x{width}, {top_k} of {count}",
            partial(_visit, ops, x, experts, itertools.cycle(routes)),
            visited * per_expert + 8.0 * x.numel(),
            byte_ops=2.0 * tokens * top_k * 3 * width * inner,
        )


def attention_work(ops: NativeOps) -> Iterator[Work]:
    shape = AttentionShape(9, 3, 64, 0.125)
    rope = Rope(torch.randn(4096, 64), 64)
    for sequences, new, length in ((1, 1, 1024), (16, 1, 256), (16, 1, 1024), (1, 512, 512)):
        batch = _batch(sequences, new, length)
        blocks = int(batch.block_tables.max()) + 1
        for dtype in (torch.float32, torch.bfloat16):
            values = torch.randn(blocks, PAGE, 3, 64).to(dtype)
            keys = ops.key_cache((blocks, PAGE, 3, 64), dtype, torch.device("cpu")).copy_(values)
            attention = Attention(shape, KVCache(keys, values), rope)
            q, qkv = torch.randn(sequences * new, 9, 64), torch.randn(sequences * new, 15 * 64)
            read = 2.0 * sequences * length * 3 * 64 * dtype.itemsize
            pairs = sequences * (new * length - new * (new - 1) / 2)
            label = f"{sequences}x{new} at {length}, {str(dtype).removeprefix('torch.')}"
            yield Work(
                "paged_attention",
                label,
                partial(ops.paged_attention, q, attention, batch),
                read + 8.0 * q.numel(),
                float_ops=4.0 * pairs * 9 * 64,
            )
            yield Work(
                "rope_kv_write",
                label,
                partial(ops.rope_kv_write, qkv, attention, batch),
                4.0 * (qkv.numel() + q.numel()) + 2.0 * sequences * new * 3 * 64 * dtype.itemsize,
            )


def row_work(ops: NativeOps) -> Iterator[Work]:
    weight, table = torch.randn(576), _weight(ops, "q8_0", 49152, 576)
    for count in (1, 16, 512):
        x, residual, gate_up = torch.randn(count, 576), torch.randn(count, 576), torch.randn(count, 3072)
        ids = torch.randint(0, 49152, (count,))
        size = 4.0 * x.numel()
        yield Work("rms_norm", f"{count}x576", partial(ops.rms_norm, x, weight, 1e-5), 2 * size)
        yield Work(
            "add_rms_norm",
            f"{count}x576",
            partial(ops.add_rms_norm, x, residual, weight, 1e-5),
            4 * size,
        )
        yield Work(
            "activate_gated", f"{count}x3072, silu", partial(ops.activate_gated, gate_up, "silu"), 6.0 * gate_up.numel()
        )
        yield Work("embedding", f"{count}x576, q8_0", partial(ops.embedding, ids, table, torch.float32), 1.25 * size)
    cache = torch.randn(COPIED_BLOCKS * 4, PAGE, 3, 64)
    sources = torch.randperm(COPIED_BLOCKS * 2)[:COPIED_BLOCKS]
    moved = 2.0 * COPIED_BLOCKS * cache[0].nbytes
    copying = partial(ops.copy_blocks, cache, sources, sources + COPIED_BLOCKS * 2)
    yield Work("copy_blocks", f"{COPIED_BLOCKS} blocks of {PAGE}x3x64", copying, moved)


def sample_work(ops: NativeOps) -> Iterator[Work]:
    for rows in (1, 16):
        logits = torch.randn(rows, 49152) * 3
        for label, temperature, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("temperature", 1.0, 0, 1.0),
            ("top-k 40, top-p 0.9", 0.8, 40, 0.9),
            ("top-p 0.9", 0.8, 0, 0.9),
        ):
            batch = SamplingBatch(
                temperature=torch.full((rows,), temperature),
                top_k=torch.full((rows,), top_k, dtype=torch.int32),
                top_p=torch.full((rows,), top_p),
                min_p=torch.zeros(rows),
                seeds=torch.arange(rows),
                choices=torch.zeros(rows, dtype=torch.int32),
                positions=torch.arange(rows),
                all_greedy=temperature == 0.0,
            )
            yield Work(
                "sample",
                f"{rows}x49152, {label}",
                partial(ops.sample, logits, batch),
                4.0 * logits.numel(),
            )


def _rotate(ops: NativeOps, x: torch.Tensor, copies: Iterator[PackedWeight]) -> torch.Tensor:
    return ops.linear(x, next(copies))


def _visit(ops: NativeOps, x: torch.Tensor, experts: ExpertWeights, routes: Iterator[Routes]) -> torch.Tensor:
    return ops.experts(x, experts, next(routes))


def _weight(ops: NativeOps, kind: str, rows: int, width: int) -> PackedWeight:
    if kind in ("f32", "bf16"):
        values = torch.randn(rows, width) * 0.05
        packed = ops.prepare_weight(values, torch.bfloat16 if kind == "bf16" else torch.float32)
    else:
        group, group_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
        blocks = torch.randint(0, 256, (rows, width // group * group_bytes), dtype=torch.uint8) & BELOW_ONE
        packed = ops.prepare_weight(QuantizedWeight(blocks, kind, (rows, width)))
    assert isinstance(packed, PackedWeight)
    return packed


def _copy(ops: NativeOps, weight: PackedWeight) -> PackedWeight:
    """In the engine's memory, whose pages are as large as those of a loaded model."""
    blocks = ops.engine.reserve(weight.format, weight.shape).copy_(weight.blocks)
    native = library.Weight(blocks.data_ptr(), weight.native.format, weight.native.n, weight.native.k)
    return PackedWeight(blocks, weight.format, weight.shape, native)


def _batch(sequences: int, new: int, length: int) -> PagedBatch:
    per_sequence = -(-length // PAGE)
    tables = torch.randperm(sequences * per_sequence, dtype=torch.int32).view(sequences, per_sequence)
    positions = torch.arange(length - new, length).repeat(sequences)
    owners = torch.arange(sequences).repeat_interleave(new)
    return PagedBatch(
        positions=positions,
        slots=tables[owners, positions // PAGE].long() * PAGE + positions % PAGE,
        cu_seqlens=torch.arange(0, sequences * new + 1, new, dtype=torch.int32),
        seq_lens=torch.full((sequences,), length, dtype=torch.int32),
        block_tables=tables,
        num_decodes=sequences if new == 1 else 0,
        max_query_len=new,
        max_seq_len=length,
    )
