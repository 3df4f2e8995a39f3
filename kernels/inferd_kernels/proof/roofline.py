"""Expected time of each kernel from compiled code and data sheets: a model, not a measurement. Treat it as +-30 %.

t = launches + max(bytes / memory, serial chain of one block, warp instructions / issue slots, flops / tensor cores)

Memory reaches 0.90 of its peak (device copies on an H100 reach 3.0 of 3.35 TB/s), loops fill 0.60 of the issue slots,
tensor cores reach 0.72 of dense peak in matmuls and 0.50 in attention; a dependent memory access takes 0.7 us, a kernel
in a captured graph 2.5 us. On an H100 the kernels of a decode step took 0.6 to 1.6 times what this says, prefill of
1,024 tokens 1.7 times and of 8,192 1.2 times (docs/benchmarks-gpu.md); what short prompts wait for is not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from inferd_kernels.proof.compiler import blocks_per_multiprocessor
from inferd_kernels.triton.tiles import decode_tile, gemm_small_tile, gemm_w4_tile, prefill_tile

Facts = dict[str, int]
LATENCY = 0.7e-6
LAUNCH = 2.5e-6
MEMORY_SHARE, ISSUE_SHARE, MATMUL_SHARE, ATTENTION_SHARE = 0.90, 0.60, 0.72, 0.50


@dataclass(frozen=True)
class Device:
    name: str
    arch: str
    multiprocessors: int
    clock: float  # Hz
    bandwidth: float  # bytes/s
    tensor: float  # dense bf16 flop/s


@dataclass(frozen=True)
class Model:
    """What one GPU holds: head and inner counts are those of a tensor-parallel rank."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int


@dataclass(frozen=True)
class Estimate:
    kernel: str
    floor: float  # seconds: bytes, or flops where they take longer, at peak
    time: float  # seconds
    limit: str


DEVICES = (
    Device("H100 SXM", "sm_90", 132, 1.755e9, 3.35e12, 989e12),
    Device("H200", "sm_90", 132, 1.755e9, 4.8e12, 989e12),
    Device("A100 80G", "sm_80", 108, 1.41e9, 2.04e12, 312e12),
)
MODELS = (
    Model("Llama-3-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    Model("Llama-3-70B, TP 8", 80, 8192, 8, 1, 128, 3584, 16032),
)
BATCHES = (1, 16, 64, 256)


def choose(kernel: str, floor: float, terms: dict[str, float], launches: int = 1) -> Estimate:
    limit = max(terms, key=lambda name: terms[name])
    time = terms[limit] + launches * LAUNCH
    return Estimate(kernel, floor, time, "launch" if launches * LAUNCH > terms[limit] else limit)


def streaming(device: Device, kernel: str, size: float) -> Estimate:
    """A kernel that only moves bytes."""
    return choose(
        kernel, size / device.bandwidth, {"memory": size / (device.bandwidth * MEMORY_SHARE), "latency": 2 * LATENCY}
    )


def decode_attention(
    device: Device, model: Model, table: dict[str, Facts], batch: int, context: int, element: int = 2
) -> Estimate:
    """One layer. Blocks: sequences x KV heads x splits. element: bytes of a cached value, 2 (bf16) or 1 (fp8)."""
    facts = table[f"decode {'bf16' if element == 2 else 'fp8'} D{model.head_dim}: decode_split"]
    tile = decode_tile(device.arch, element, model.head_dim, model.kv_heads)
    splits = min(ceil(context / tile.split), tile.max_splits)
    blocks = batch * model.kv_heads * splits
    slots = device.multiprocessors * blocks_per_multiprocessor(facts, device.arch)
    waves = ceil(blocks / slots)
    steps = ceil(context / splits / tile.tile)
    scales = 0 if element == 2 else 4
    size = 2 * batch * context * model.kv_heads * (model.head_dim * element + scales)
    partial = 2 * batch * model.heads * splits * (model.head_dim + 1) * 4 if splits > 1 else 0
    per_multiprocessor = ceil(min(blocks, slots) / device.multiprocessors)
    issue = waves * steps * per_multiprocessor * facts["loop"] * facts["warps"] / 4 / device.clock
    flops = 4 * batch * context * model.kv_heads * max(16, model.heads // model.kv_heads) * model.head_dim
    terms = {
        "memory": (size + partial) / (device.bandwidth * MEMORY_SHARE),
        "latency": waves * steps * 2 * LATENCY,  # the block's number, then its keys
        "issue": issue / ISSUE_SHARE,
        "tensor": flops / (device.tensor * ATTENTION_SHARE),
    }
    name = "decode attention" if element == 2 else "decode attention, fp8 cache"
    return choose(name, size / device.bandwidth, terms, launches=2 if splits > 1 else 1)


def matmul(device: Device, kernel: str, tokens: int, columns: int, depth: int) -> Estimate:
    """bf16 weights through cuBLAS or, up to 64 tokens, the small GEMM's tiles."""
    size = 2.0 * (columns * depth + tokens * depth + tokens * columns)
    flops = 2.0 * tokens * columns * depth
    terms = {
        "memory": size / (device.bandwidth * MEMORY_SHARE),
        "tensor": 2.0 * max(tokens, 16) * columns * depth / (device.tensor * MATMUL_SHARE),
    }
    if tokens <= 64:
        tile = gemm_small_tile(device.arch, 2, tokens)
        blocks = ceil(columns / tile.columns) * ceil(tokens / tile.rows)
        flight = (
            min(blocks, 3 * device.multiprocessors)
            * 2
            * (tile.columns + tile.rows)
            * tile.depth
            * (tile.num_stages - 1)
        )
        terms["latency"] = max(
            size * LATENCY / flight, size / (min(blocks, device.multiprocessors) * 64 * device.clock * 0.7)
        )
    return choose(kernel, max(size / device.bandwidth, flops / device.tensor), terms)


def quantized_matmul(device: Device, model: Model, table: dict[str, Facts], batch: int, bits: int) -> Estimate:
    """gate_up with 8-bit or 4-bit weights, up to 64 tokens; one scale per row, or per 128 weights."""
    columns, depth, bucket = 2 * model.inner, model.hidden, 16 if batch <= 16 else 64
    if bits == 8:
        facts, tile = table[f"small GEMM fp8, {bucket} tokens: gemm_small"], gemm_small_tile(device.arch, 1, batch)
        size, step = float(columns * depth), tile.columns * tile.depth
    else:
        facts, tile = table[f"W4A16, group 128, {bucket} tokens: gemm_w4"], gemm_w4_tile(device.arch, batch, 128)
        size, step = columns * depth / 2 + columns * depth / 128 * 4, tile.columns * tile.depth * 2
    size += 2 * batch * (depth + columns)
    steps = ceil(batch / tile.rows) * columns * depth / step
    terms = {
        "memory": size / (device.bandwidth * MEMORY_SHARE),
        "issue": steps * facts["loop"] * facts["warps"] / 4 / device.clock / device.multiprocessors / ISSUE_SHARE,
    }
    return choose(f"gate_up, {bits} bits", size / device.bandwidth, terms)


def prefill_attention(device: Device, model: Model, table: dict[str, Facts], tokens: int) -> Estimate:
    """One layer, one prompt without a prefix."""
    facts = table[f"prefill bf16 D{model.head_dim}: prefill"]
    tile = prefill_tile(device.arch, 2, model.head_dim)
    flops = 2.0 * tokens * tokens * model.heads * model.head_dim  # causal: half of 4 T^2
    tiles = tokens * model.heads / tile.rows * tokens / 2 / tile.tile
    issue = tiles * facts["loop"] * facts["warps"] / 4 / device.clock / device.multiprocessors
    exponentials = tiles * tile.rows * tile.tile / 16 / device.clock / device.multiprocessors
    tensor = flops / device.tensor
    terms = {
        "issue": issue / ISSUE_SHARE,
        "tensor + exp": (tensor + exponentials) / 0.87,
        "memory": 2 * tokens * (model.heads + model.kv_heads) * model.head_dim * 2 / device.bandwidth,
    }
    return choose("prefill attention", tensor, terms)


def sampling(device: Device, table: dict[str, Facts], batch: int, vocab: int, filtered: bool) -> Estimate:
    """A program per chunk of 4096 logits; filters add a first pass and eight for each of the two."""
    programs = batch * ceil(vocab / 4096)
    passes = ["draw"] + (["extremes"] + ["narrow_count"] * 8 + ["narrow_mass"] * 8 if filtered else [])
    time = 0.0
    for kernel in passes:
        facts = table[f"sample: {kernel}"]
        slots = device.multiprocessors * blocks_per_multiprocessor(facts, device.arch)
        shared = ceil(min(programs, slots) / device.multiprocessors) * ceil(programs / slots)
        steps = max(1, 4 if kernel.startswith("narrow") else 1)
        issue = shared * (facts["sass"] + (steps - 1) * facts["loop"]) * facts["warps"] / 4 / device.clock / ISSUE_SHARE
        time += max(issue, 2.0 * batch * vocab / (device.bandwidth * MEMORY_SHARE), 2 * LATENCY)
    name = "sample, top-k and top-p" if filtered else "sample, no filter"
    return choose(name, 2.0 * batch * vocab / device.bandwidth, {"issue": time}, launches=19)


def decode_step(device: Device, model: Model, table: dict[str, Facts], batch: int, context: int) -> list[Estimate]:
    """The kernels of one layer, then those of the step."""
    width = model.head_dim
    qkv = (model.heads + 2 * model.kv_heads) * width
    return [
        matmul(device, "qkv", batch, qkv, model.hidden),
        streaming(device, "rope + KV write", 2.0 * batch * 2 * qkv),
        decode_attention(device, model, table, batch, context),
        matmul(device, "o", batch, model.hidden, model.heads * width),
        streaming(device, "add + RMS norm (two per layer)", 2.0 * 4 * batch * model.hidden),
        matmul(device, "gate_up", batch, 2 * model.inner, model.hidden),
        streaming(device, "SiLU * up", 2.0 * 3 * batch * model.inner),
        matmul(device, "down", batch, model.hidden, model.inner),
        matmul(device, "lm_head (once)", batch, model.vocab, model.hidden),
        sampling(device, table, batch, 128256, False),
        sampling(device, table, batch, 128256, True),
    ]


def quantized(device: Device, model: Model, table: dict[str, Facts], batch: int, context: int) -> list[Estimate]:
    """What quantized weights and caches would take in place of the rows above; fp8 needs sm_89."""
    found = [quantized_matmul(device, model, table, batch, 4)]
    if "decode fp8 D128: decode_split" in table:
        found += [
            quantized_matmul(device, model, table, batch, 8),
            decode_attention(device, model, table, batch, context, 1),
        ]
    return found


def step_time(estimates: list[Estimate], model: Model) -> float:
    """Seconds of a decode step: layers, lm_head and sampling without filters; no communication between ranks."""
    layer = sum(item.time for item in estimates[:8]) + estimates[4].time
    return model.layers * layer + estimates[8].time + estimates[9].time
