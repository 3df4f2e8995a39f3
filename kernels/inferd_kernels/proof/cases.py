"""The launches whose machine code is held to a budget: shapes of Llama-3-8B and its neighbours, on tensors without
values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from inferd_kernels.operands import Attention, AttentionShape, KVCache, PagedBatch, QkNorm, Rope, SamplingBatch
from inferd_kernels.proof.compiler import TARGETS
from inferd_kernels.triton import gemm_small, library, linear, norm
from inferd_kernels.triton.backend import TritonOps
from inferd_kernels.triton.tiles import architecture, gemm_small_tile
from inferd_kernels.weights import Fp8Weight

OPS = TritonOps()
BF16, FP8, INT8 = torch.bfloat16, torch.float8_e4m3fn, torch.int8
ALL = tuple(TARGETS)
WITH_FP8 = tuple(arch for arch in ALL if arch != "sm_80")  # Ampere has no fp8 e4m3


@dataclass(frozen=True)
class Case:
    """`kernels` are the launches it makes, in order. `need` is the least count of an instruction, by kind of target.

    bytes_per_loop: what one pass of the busiest loop reads from memory, for the issue headroom; 0 where it is not of
    use.
    """

    name: str
    run: Callable[[], object]
    kernels: tuple[str, ...]
    archs: tuple[str, ...] = ALL
    need: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_per_loop: int = 0
    headroom: float = 0.0
    fast: tuple[str, ...] = ("sm_90",)  # targets of the fast lane


def batch(sequences: int, tokens: int, decodes: int, context: int = 8192) -> PagedBatch:
    return PagedBatch(
        positions=torch.empty(tokens, dtype=torch.int64),
        slots=torch.empty(tokens, dtype=torch.int64),
        cu_seqlens=torch.empty(sequences + 1, dtype=torch.int32),
        seq_lens=torch.empty(sequences, dtype=torch.int32),
        block_tables=torch.empty(sequences, context // 16, dtype=torch.int32),
        num_decodes=decodes,
        max_query_len=tokens,
        max_seq_len=context,
    )


def attention(
    dim: int, cache: torch.dtype, decode: bool, rows: int = 16, options: bool = False, context: int = 8192
) -> Callable[[], object]:
    def run() -> object:
        shape = AttentionShape(32, 8, dim, dim**-0.5, 4096 if options else 0, 30.0 if options else 0.0)
        kv = torch.empty(64, 16, 8, dim, dtype=cache)
        scales = (torch.empty(64, 16, 8), torch.empty(64, 16, 8)) if cache.itemsize == 1 else None
        step = batch(rows, rows, rows, context) if decode else batch(4, 512, 0)
        q = torch.empty(step.positions.shape[0], 32, dim, dtype=BF16)
        attention = Attention(shape, KVCache(kv, kv, scales), sinks=torch.empty(32) if options else None)
        return OPS.paged_attention(q, attention, step)

    return run


def prompts(decodes: int, context: int) -> object:
    """Two prompts behind `decodes` decode rows, in one step."""
    kv, rows = torch.empty(64, 16, 8, 128, dtype=BF16), decodes + 40
    step = batch(decodes + 2, rows, decodes, context)
    attention = Attention(AttentionShape(32, 8, 128, 0.1), KVCache(kv, kv))
    return OPS.paged_attention(torch.empty(rows, 32, 128, dtype=BF16), attention, step)


def rope(cache: torch.dtype, normed: bool) -> Callable[[], object]:
    def run() -> object:
        shape = AttentionShape(32, 8, 128, 1.0)
        k_cache, v_cache = (torch.empty(64, 16, 8, 128, dtype=cache) for _ in range(2))
        scales = (torch.empty(64, 16, 8), torch.empty(64, 16, 8)) if cache.itemsize == 1 else None
        weight = torch.empty(128, dtype=BF16)
        qkv = torch.empty(16, 48 * 128, dtype=BF16)
        rope, qk_norm = Rope(torch.empty(8192, 128), 128), QkNorm(weight, weight, 1e-6) if normed else None
        attention = Attention(shape, KVCache(k_cache, v_cache, scales), rope, qk_norm)
        return OPS.rope_kv_write(qkv, attention, batch(16, 16, 16))

    return run


def rms(quantized: bool) -> Callable[[], object]:
    def run() -> object:
        x, weight = torch.empty(16, 4096, dtype=BF16), torch.empty(4096, dtype=BF16)
        if not quantized:
            return OPS.add_rms_norm(x, x, weight, 1e-5)
        out = torch.empty(16, 4096, dtype=FP8)
        norm.launch(out, torch.empty_like(x), torch.empty(16), x, x, weight, 1e-5)
        return out

    return run


def sampling(rows: int = 16) -> object:
    numbers, counters = torch.empty(rows), torch.empty(rows, dtype=torch.int64)
    short = torch.empty(rows, dtype=torch.int32)
    parameters = SamplingBatch(numbers, short, numbers, numbers, counters, short, counters, False)
    return OPS.sample(torch.empty(rows, 128256, dtype=BF16), parameters)


def small_gemm(tokens: int) -> Callable[[], object]:
    def run() -> object:
        x, weight = torch.empty(tokens, 4096, dtype=BF16), torch.empty(6144, 4096, dtype=BF16)
        out = torch.empty(tokens, 6144, dtype=BF16)
        gemm_small.launch(out, x, weight, None, None, gemm_small_tile(architecture(), 2, tokens))
        return out

    return run


def fp8_gemm(tokens: int) -> Callable[[], object]:
    weight = Fp8Weight(torch.empty(6144, 4096, dtype=FP8), torch.empty(6144))
    return lambda: OPS.linear(torch.empty(tokens, 4096, dtype=BF16), weight)


def w4_gemm(tokens: int, group: int, offset: bool) -> Callable[[], object]:
    scale = torch.empty(6144, 4096 // group)
    weight = linear.W4Weight(torch.empty(6144, 2048, dtype=torch.uint8), scale, scale if offset else None)
    return lambda: OPS.linear(torch.empty(tokens, 4096, dtype=BF16), weight)


def mixture() -> object:
    gate_up, down = torch.empty(8, 2 * 1024, 2048, dtype=BF16), torch.empty(8, 2048, 1024, dtype=BF16)
    routes = OPS.route(torch.empty(16, 8, dtype=BF16), 2, True)
    return OPS.experts(torch.empty(16, 2048, dtype=BF16), OPS.prepare_experts(gate_up, down, "silu"), routes)


def gate() -> object:
    return OPS.activate_gated(torch.empty(16, 28672, dtype=BF16), "silu")


def edits() -> None:
    logits, tokens = torch.empty(4, 128256), torch.empty(4, 512, dtype=torch.int32)
    rows = torch.empty(4, dtype=torch.int32)
    OPS.penalize(logits, rows, tokens, tokens, torch.empty(4), torch.empty(4), torch.empty(4))
    OPS.mask_tokens(logits, rows, torch.empty(4, 4008, dtype=torch.int32))


def copies() -> object:
    index = torch.empty(2, dtype=torch.int64)
    return library.copy_blocks(torch.empty(64, 16, 8, 128, dtype=BF16), index, index)


SAMPLE = ("extremes", *["narrow_count"] * 8, *["narrow_mass"] * 8, "draw", "pick")
DECODE = ("decode_split", "decode_merge")
COPY = {"nvidia": {"tensor": 16, "async_copy_128": 8}, "amd": {"tensor": 16}}
HGMMA = {"sm_90": {"wgmma": 16}, "sm_100": {"wgmma": 16}, "nvidia": {"tensor": 16}, "amd": {"tensor": 16}}
MMA = {"nvidia": {"tensor": 16}, "amd": {"tensor": 16}}
NARROW = {"nvidia": {"tensor": 4, "async_copy_128": 8}, "amd": {"tensor": 4}}
QGMMA = {"sm_90": {"fp8_mma": 4}}
VECTOR = {"nvidia": {"load_128": 2, "store_128": 1}}
CORE = ("sm_80", "sm_90", "sm_100", "sm_120", "gfx942")
CORE_8 = CORE[1:]
TILE_BYTES = 2 * 128 * 128  # K and V of a decode tile: 64 tokens in bf16, 128 in 8 bits, at D 128
BF16_ROOM, FP8_ROOM, INT8_ROOM = 3.0, 2.0, 1.8  # times the instructions that HBM leaves time for

CASES = (
    Case("decode bf16 D64", attention(64, BF16, True), DECODE, ALL, COPY, 4 * 128 * 64, BF16_ROOM),
    Case("decode bf16 D80", attention(80, BF16, True), DECODE, ALL, COPY, 4 * 64 * 80, BF16_ROOM),
    Case("decode bf16 D128", attention(128, BF16, True), DECODE, ALL, COPY, TILE_BYTES, BF16_ROOM, CORE),
    Case("decode bf16 D256", attention(256, BF16, True), DECODE, ALL, COPY, 4 * 32 * 256, BF16_ROOM),
    Case(
        "decode bf16 D128, window, cap, sinks", attention(128, BF16, True, options=True), DECODE, ALL, COPY, TILE_BYTES,
        BF16_ROOM,
    ),
    Case("decode fp8 D64", attention(64, FP8, True), DECODE, WITH_FP8, COPY, 2 * 128 * 64, FP8_ROOM),
    Case("decode fp8 D128", attention(128, FP8, True), DECODE, WITH_FP8, COPY, TILE_BYTES, FP8_ROOM, CORE_8),
    Case("decode fp8 D256", attention(256, FP8, True), DECODE, WITH_FP8, COPY, 2 * 64 * 256, FP8_ROOM),
    Case(
        "decode fp8 D128, window, cap, sinks", attention(128, FP8, True, options=True), DECODE, WITH_FP8, COPY,
        TILE_BYTES, FP8_ROOM, (),
    ),
    Case("decode int8 D64", attention(64, INT8, True), DECODE, ALL, COPY, 2 * 128 * 64, INT8_ROOM, ()),
    Case("decode int8 D128", attention(128, INT8, True), DECODE, ALL, COPY, TILE_BYTES, INT8_ROOM),
    Case("decode int8 D256", attention(256, INT8, True), DECODE, ALL, COPY, 2 * 64 * 256, INT8_ROOM, ()),
    Case("prefill bf16 D64", attention(64, BF16, False), ("prefill",), need=HGMMA),
    Case("prefill bf16 D128", attention(128, BF16, False), ("prefill",), need=HGMMA, fast=CORE),
    Case("prefill bf16 D256", attention(256, BF16, False), ("prefill",), need=HGMMA),
    Case("prefill fp8 D64", attention(64, FP8, False), ("prefill",), WITH_FP8, need=HGMMA, fast=()),
    Case("prefill fp8 D128", attention(128, FP8, False), ("prefill",), WITH_FP8, need=HGMMA),
    Case("prefill fp8 D256", attention(256, FP8, False), ("prefill",), WITH_FP8, need=MMA, fast=()),
    Case("prefill int8 D128", attention(128, INT8, False), ("prefill",), need=HGMMA, fast=()),
    Case("rope and KV write, bf16", rope(BF16, False), ("rope_kv",)),
    Case("rope and KV write, q/k norm, fp8", rope(FP8, True), ("rope_kv",), WITH_FP8),
    Case("rope and KV write, int8", rope(INT8, False), ("rope_kv",)),
    Case("add + RMS norm 4096", rms(False), ("norm_rows",), need=VECTOR, fast=CORE),
    Case("add + RMS norm 4096, fp8 out", rms(True), ("norm_rows",), WITH_FP8),
    Case("SiLU * up", gate, ("silu_mul",), need=VECTOR),
    Case("sample", sampling, SAMPLE),
    Case("penalties and grammar", edits, ("penalize", "mask_bits")),
    Case("copy blocks", copies, ("copy",), need=VECTOR),
    Case("small GEMM bf16, 16 tokens", small_gemm(16), ("gemm_small",), need=NARROW),
    Case("small GEMM bf16, 64 tokens", small_gemm(64), ("gemm_small",), need=NARROW),
    Case("small GEMM fp8, 16 tokens", fp8_gemm(16), ("quant_rows", "gemm_small"), WITH_FP8, QGMMA, 128 * 128, 6.0),
    Case("small GEMM fp8, 64 tokens", fp8_gemm(64), ("quant_rows", "gemm_small"), WITH_FP8, QGMMA),
    Case("W4A16, group 128, 16 tokens", w4_gemm(16, 128, False), ("gemm_w4",)),
    Case("W4A16, group 32 with minimum, 16 tokens", w4_gemm(16, 32, True), ("gemm_w4",)),
    Case("W4A16, group 128, 64 tokens", w4_gemm(64, 128, False), ("gemm_w4",)),
    Case("int8 rows", lambda: library_rows(INT8), ("quant_rows",)),
    Case("mixture of experts", mixture, ("route", "count_pairs", "line_up", "gemm_moe", "silu_mul", "gemm_moe")),
)  # fmt: skip


def library_rows(dtype: torch.dtype) -> object:
    return linear.quantize_rows(torch.empty(16, 4096, dtype=BF16), dtype)
