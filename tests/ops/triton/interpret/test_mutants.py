# ruff: noqa: E501  (a table of source texts)
"""Kernels with a planted defect: the guard or the oracle must kill every one, and pass the kernel without the defect."""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from inferd_kernels import reference, reference_gpu
from inferd_kernels.ops import AttentionShape, Ops
from inferd_kernels.proof import launches
from inferd_kernels.proof.guard import Guard, GuardError
from inferd_kernels.proof.mutants import Mutant, load
from inferd_kernels.proof.problems import attention_problem, relative_error
from inferd_kernels.triton.tiles import AttentionTile, GemmTile
from triton.runtime.errors import InterpreterError

REFERENCE = Ops()

DECODE = "attention paged_decode"
PREFILL = "attention paged_prefill"
MUTANTS = [
    Mutant("table load unmasked", "attention", "pos // PAGE, mask=live, other=0)", "pos // PAGE)", "decode"),
    Mutant("block offset in 32 bits", "attention", "mask=live, other=0).to(tl.int64)", "mask=live, other=0).to(tl.int32)", "far"),
    Mutant("dead keys not masked", "attention", "s = tl.where(visible, s, float(\"-inf\"))", "s = s + 0.0", "decode"),
    Mutant("dead values loaded", "attention", "mask=live[:, None], other=0.0)", "mask=live[:, None] | True)", "decode"),
    Mutant("slot within the page dropped", "attention", "(pos % PAGE) * token_stride", "0 * token_stride", "decode"),
    Mutant("rescaling inverted", "attention", "shrink = tl.exp2(m - base)", "shrink = tl.exp2(base - m)", "decode"),
    Mutant("sum not rescaled", "attention", "total = total * shrink", "total = total * 1.0", "decode"),
    Mutant("accumulator not rescaled", "attention", "v, acc * shrink[:, None]", "v, acc * 1.0", "decode"),
    Mutant("key scale forgotten", "attention", "s = s * k_scale[None, :]", "s = s * 1.0", "decode8"),
    Mutant("value scale forgotten", "attention", "p * v_scale[None, :]", "p * 1.0", "decode8"),
    Mutant("even and odd values exchanged", "attention", "v_even, v_odd = widen_pairs(", "v_odd, v_even = widen_pairs(", "decode8"),
    Mutant("odd values not rescaled", "attention", "acc[1] * shrink[:, None]", "acc[1] * 1.0", "decode8"),
    Mutant("weight shift kept in the sum", "attention", "lse -= WEIGHT_SHIFT", "lse -= 0.0", "sinks8"),
    Mutant("scale of another head", "attention", "* kv_heads + kv_head\n", "* kv_heads\n", "decode8"),
    Mutant("cap forgotten", "attention", "s = tanh(s * (scale / softcap)) * softcap", "s = s * scale", "options"),
    Mutant("sink in base e", "attention", ".to(tl.float32) * LOG2E\n        top", ".to(tl.float32)\n        top", "options"),
    Mutant("empty rows divide by zero", "attention", "acc / tl.where(total > 0, total, 1.0)[:, None]", "acc / total[:, None]", "decode"),
    Mutant("one key too many", "paged_decode", "(pos < high)", "(pos <= high)", "decode"),
    Mutant("padded group rows stored", "paged_decode", "mine = g < GROUP\n", "mine = g < GROUP_PAD\n", "decode"),
    Mutant("window one too wide", "paged_decode", "tl.maximum(length - window, 0)", "tl.maximum(length - window - 1, 0)", "options"),
    Mutant("splits share a slot", "paged_decode", "slots = rows * splits + split", "slots = rows * splits", "decode"),
    Mutant("merge reads absent splits", "paged_decode", "mask=live, other=float(\"-inf\"))", "mask=split < splits, other=float(\"-inf\"))", "decode"),
    Mutant("merge skips the last split", "paged_decode", "end = (length + size - 1) // size", "end = length // size", "decode"),
    Mutant("full tiles not skipped after", "paged_decode", "begin = tl.maximum(begin, high // TILE)", "begin = begin", "decode"),
    Mutant("full tiles one too many", "paged_decode", "range(begin, high // TILE)", "range(begin, high // TILE + 1)", "decode"),
    Mutant("causal off by one", "paged_prefill", "pos[None, :] <= q_pos[:, None]", "pos[None, :] < q_pos[:, None]", "prefill"),
    Mutant("not causal", "paged_prefill", "pos[None, :] <= q_pos[:, None]", "pos[None, :] <= q_pos[:, None] + TILE", "prefill"),
    Mutant("unmasked loop one too far", "paged_prefill", "begin = (first + 1) // TILE", "begin = (first + TILE) // TILE", "prefill"),
    Mutant("rows of the next sequence", "paged_prefill", "(token < count) & ", "(token >= 0) & ", "prefill"),
    Mutant("search off by one", "paged_prefill", "+ low)) * TOKENS", "+ low)) * (TOKENS - 1)", "prefill"),
    Mutant("window ignored", "paged_prefill", "q_pos[:, None] - window)", "q_pos[:, None] - window - 1)", "options"),
    Mutant("query row of another token", "paged_prefill", "kv_head * GROUP + r % GROUP", "kv_head * GROUP + r // TOKENS", "prefill"),
    Mutant("slot -1 written", "rope_kv", "    if slot < 0:\n        return\n", "", "rope"),
    Mutant("rotation reversed", "rope_kv", "first * cos - second * sin", "first * cos + second * sin", "rope"),
    Mutant("padding rotated in", "rope_kv", "(d < SIZE)[None, :], other=0.0).to", "(d < PAD)[None, :], other=0.0).to", "rope"),
    Mutant("padding stored", "rope_kv", "mask = mine[:, None] & (d < SIZE)[None, :]", "mask = mine[:, None] & (d < PAD)[None, :]", "rope"),
    Mutant("value row is the key row", "rope_kv", "v_at = k_at + kv_heads * HEAD_DIM", "v_at = k_at", "rope"),
    Mutant("norm reads past the row", "norm", "other=0.0).to(tl.float32)\n    if ADD", "other=0.0).to(tl.float32) + 1e-3\n    if ADD", "norm"),
    Mutant("norm row unmasked", "norm", "inside = c < size", "inside = c < BLOCK", "norm"),
    Mutant("norm of the unrounded sum", "norm", "x = stored.to(tl.float32)", "x = x + residual", "norm"),
    Mutant("up and gate overlap", "activation", "row * 2 * size + size + c", "row * 2 * size + c", "silu"),
    Mutant("columns unmasked", "activation", "inside = c < size", "inside = c < size + BLOCK", "silu"),
    Mutant("copy to the source", "copy_blocks", "cache_ptr + destination + c", "cache_ptr + source + c", "copy"),
    Mutant("copy past the block", "copy_blocks", "inside = c < words", "inside = c < BLOCK", "copy"),
    Mutant("noise of the next token", "sample", "tl.load(positions_ptr + row), first, CHUNK", "tl.load(positions_ptr + row), first + 4, CHUNK", "sample"),
    Mutant("highest of equal tokens", "sample", "token = tl.min(tl.where(score == best, first + tl.arange(0, CHUNK), NO_TOKEN), 0)", "token = tl.max(tl.where(score == best, first + tl.arange(0, CHUNK), 0), 0)", "sample"),
    Mutant("one token too many", "sample", "(totals >= target)", "(totals > target)", "sample"),
    Mutant("vocabulary unmasked", "sample", "mask=c < vocab, other=float(\"-inf\")", "mask=c < CHUNK, other=float(\"-inf\")", "sample"),
    Mutant("long rows split short", "paged_decode", "even = (length + (MAX_SPLITS * TILE - 1)) // (MAX_SPLITS * TILE)", "even = length // (MAX_SPLITS * TILE)", "long"),
    Mutant("merge of other splits", "paged_decode", "size = split_size(length, SPLIT, MAX_SPLITS, TILE)\n    begin", "size = SPLIT\n    begin", "long"),
    Mutant("penalty on another row", "logits", "where = logits_ptr + tl.load(rows_ptr + row).to(tl.int64) * row_stride", "where = logits_ptr + row * row_stride", "edits"),
    Mutant("pads penalized", "logits", "listed = (token >= 0) & (token < vocab)", "listed = token < vocab", "edits"),
    Mutant("prompt tokens present", "logits", "tl.where(count > 0,", "tl.where(count >= 0,", "edits"),
    Mutant("mask of the next token", "logits", "(word >> (c % 32))", "(word >> ((c + 1) % 32))", "edits"),
    Mutant("nibbles biased by one", "gemm_w4", "1032.0", "1031.0", "w4"),
    Mutant("high plane scaled as low", "gemm_w4", "group + groups // 2", "group", "w4"),
    Mutant("odd depth unmasked", "gemm_small", "(n < columns)[:, None] & (at < depth)[None, :]", "(n < columns)[:, None]", "gemm"),
    Mutant("padded experts stored", "moe", "live = pair < pairs", "live = pair <= pairs", "moe"),
    Mutant("bias of another expert", "moe", "bias_ptr + expert * columns + n", "bias_ptr + n", "moe"),
    Mutant("bias past the columns", "moe", "+ n, mask=n < columns, other=0.0).to(tl.float32)[:, None]", "+ n).to(tl.float32)[:, None]", "moe"),
    Mutant("unstable rank", "moe", "place + rank - 1, p", "place + rank, p", "moe"),
    Mutant("ties to the highest expert", "moe", "best = tl.min(tl.where(left == tl.max(left, 0), e, PAD), 0)", "best = tl.max(tl.where(left == tl.max(left, 0), e, -1), 0)", "moe", 1),
]  # fmt: skip


TILE = AttentionTile(16, 32, 4, 2, split=64)  # two pages per tile, two tiles per split


def shape(**options: Any) -> AttentionShape:
    return AttentionShape(**({"num_heads": 3, "num_kv_heads": 1, "head_dim": 16, "scale": 0.25} | options))


def attention_error(module: ModuleType, queries: list[int], lens: list[int], **options: Any) -> float:
    cache, sinks = options.pop("cache", None), options.pop("sinks", bool(options))
    kind = shape(num_heads=6, num_kv_heads=2, **options) if cache else shape(**options)
    problem = attention_problem(queries, lens, kind, cache=cache, sinks=sinks)
    expected = reference_gpu.attention(
        problem.q, problem.k_cache, problem.v_cache, problem.batch, problem.shape, problem.scales, problem.sinks
    )
    if hasattr(module, "decode_split"):
        out = launches.decode(problem, TILE, module=module)
    else:
        out = launches.prefill(problem, module=module)
    return relative_error(out, expected) / (1e-3 if cache else 2e-6)


def decode(module: ModuleType) -> float:
    return attention_error(module, [1] * 3, [0, 33, 100])


def long(module: ModuleType) -> float:
    """Rows that would have more splits than there may be."""
    problem = attention_problem([1] * 3, [129, 257, 40], shape())
    expected = reference_gpu.attention(problem.q, problem.k_cache, problem.v_cache, problem.batch, problem.shape)
    return relative_error(launches.decode(problem, replace(TILE, max_splits=2), module=module), expected) / 2e-6


def edits(module: ModuleType) -> float:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    expected, rows = logits.clone(), torch.tensor([2, 0], dtype=torch.int32)
    tokens = torch.tensor([[3, 39, -1], [0, 1, 2]], dtype=torch.int32)
    counts = torch.tensor([[2, 0, 1], [1, 0, 5]], dtype=torch.int32)
    penalties = torch.tensor([1.5, 1.0]), torch.tensor([0.5, 1.0]), torch.tensor([0.25, 1.0])
    bits = torch.tensor([[0x6B3A59C1, 0x2D], [-2, -1 << 7]], dtype=torch.int32)
    for edit, masking, values in (
        (module.launch_penalties, module.launch_bitmask, logits),
        (REFERENCE.penalize, REFERENCE.mask_tokens, expected),
    ):
        edit(values, rows, tokens, counts, *penalties)
        masking(values, rows, bits)
    return 0.0 if torch.equal(logits, expected) else float("inf")


def decode8(module: ModuleType) -> float:
    return attention_error(module, [1], [40], cache=torch.float8_e4m3fn)


def sinks8(module: ModuleType) -> float:
    return attention_error(module, [1], [100], cache=torch.int8, sinks=True)


def options(module: ModuleType) -> float:
    queries, lens = ([1], [40]) if hasattr(module, "decode_split") else ([9], [40])
    return attention_error(module, queries, lens, window=17, softcap=0.5)


def prefill(module: ModuleType) -> float:
    return attention_error(module, [3, 9, 4], [3, 25, 24])


def far(module: ModuleType) -> float:
    """A cache of more than 2^32 elements (an offset within a page is unsigned), of which one block is touched."""
    small = attention_problem([1], [9], shape(head_dim=128), dtype=torch.bfloat16)
    expected = reference_gpu.attention(small.q, small.k_cache, small.k_cache, small.batch, small.shape)
    blocks = 2_100_000
    with tempfile.TemporaryFile() as file:  # mostly a hole; nothing of it is reserved
        file.truncate(blocks * 16 * 128 * 2)
        memory = mmap.mmap(file.fileno(), 0)
    untouched = np.frombuffer(memory, dtype=np.int16)  # numpy: the guard has torch fill what it allocates
    k_cache = torch.from_numpy(untouched).view(torch.bfloat16).view(blocks, 16, 1, 128)
    k_cache[-1] = small.k_cache[int(small.batch.block_tables[0, 0])]
    small.batch.block_tables[0, 0] = blocks - 1
    out = torch.empty_like(small.q)
    module.launch(
        out, small.q, k_cache, k_cache, None, None, small.batch.block_tables, small.batch.seq_lens,
        scale=small.shape.scale, window=0, softcap=0.0, max_seq_len=9, tile=launches.DECODE_TILE,
    )  # fmt: skip
    return relative_error(out, expected) / 2e-2


def rope(module: ModuleType) -> float:
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(3, 5 * 24, generator=generator)
    angles = torch.rand(8, 12, generator=generator)
    cos_sin = torch.cat((angles.cos(), angles.sin()), 1)
    positions, slots = torch.tensor([3, 7, 1]), torch.tensor([17, -1, 5])
    q = torch.full((3, 3, 24), float("nan"))
    k_cache, v_cache = (torch.zeros(2, 16, 1, 24) for _ in range(2))
    module.launch(q, qkv, k_cache, v_cache, None, positions, slots, cos_sin, None, 0.0)
    parts = qkv.view(3, 5, 24)
    first, second = parts[:, :4, :12], parts[:, :4, 12:]
    cos, sin = cos_sin[positions].unsqueeze(1).split(12, -1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    keys, values = torch.zeros(32, 24), torch.zeros(32, 24)
    for token in (0, 2):
        keys[slots[token]], values[slots[token]] = turned[token, 3], parts[token, 4]
    errors = (
        relative_error(q, turned[:, :3]),
        relative_error(k_cache.view(32, 24), keys),
        relative_error(v_cache.view(32, 24), values),
    )
    return max(errors) / 1e-6


def norm(module: ModuleType) -> float:
    x, residual = (torch.randn(3, 20, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (1, 2))
    weight = torch.ones(20).bfloat16()
    out, hidden = torch.empty_like(x), torch.empty_like(x)
    module.launch(out, hidden, None, x, residual, weight, 1e-6)
    expected, _ = REFERENCE.add_rms_norm(x, residual, weight, 1e-6)
    return 0.0 if torch.equal(out, expected) else float("inf")


def silu(module: ModuleType) -> float:
    gate_up = torch.randn(2, 40, generator=torch.Generator().manual_seed(1))
    out = torch.empty(2, 20)
    module.launch(out, gate_up)
    return relative_error(out, REFERENCE.activate_gated(gate_up, "silu")) / 1e-6


def copy(module: ModuleType) -> float:
    cache = torch.randn(4, 16, 1, 8, generator=torch.Generator().manual_seed(1))
    expected = cache.clone()
    module.launch(cache, torch.tensor([1]), torch.tensor([3]))
    expected[3] = expected[1]
    return 0.0 if torch.equal(cache, expected) else float("inf")


def sample(module: ModuleType) -> float:
    logits = (torch.randn(4, 70, generator=torch.Generator().manual_seed(1)) * 2).round()
    logits[0, 3] = logits[0, 60] = 9.0
    logits[2, 40:42] = torch.tensor([9.0, 8.5])
    temperature = torch.tensor([0.0, 1.0, 50.0, 2.0])
    filters = torch.tensor([0, 0, 1, 7], dtype=torch.int32), torch.tensor([1.0, 1, 1, 0.6]), torch.zeros(4)
    counters = torch.arange(4) + 5, torch.zeros(4, dtype=torch.int32), torch.arange(4)
    out = torch.empty(4, dtype=torch.int64)
    module.launch(out, logits, temperature, filters, counters, False)
    scaled = logits[1:] / temperature[1:, None]
    kept = reference.filter_logits(scaled, *(part[1:] for part in filters))
    noisy = kept + reference.gumbel_noise(70, *(part[1:] for part in counters))
    expected = [int(logits[0].argmax()), *noisy.argmax(-1).tolist()]
    return 0.0 if out.tolist() == expected else float("inf")


def w4(module: ModuleType) -> float:
    generator = torch.Generator().manual_seed(1)
    packed = torch.randint(0, 256, (20, 32), generator=generator, dtype=torch.uint8)
    scale, x = torch.rand(20, 2, generator=generator), torch.randn(2, 64, generator=generator).half()
    out = torch.empty(2, 20).half()
    module.launch(out, x, packed, scale, None, None, GemmTile(16, 32, 32, 4, 2))
    return relative_error(out, x.double() @ reference_gpu.unpack_w4(packed, scale).double().T) / 2e-3


def gemm(module: ModuleType) -> float:
    x, weight = (torch.randn(3, 40, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    out = torch.empty(3, 3)
    module.launch(out, x, weight, None, None, GemmTile(16, 16, 32, 4, 2))
    return relative_error(out, x.double() @ weight.double().T) / 2e-6


def moe(module: ModuleType) -> float:
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 2.0], [0.0, 1.0, 3.0]])
    experts, weights = torch.empty(3, 2, dtype=torch.int32), torch.empty(3, 2)
    module.launch_route(experts, weights, logits, True)
    if not torch.equal(experts, REFERENCE.route(logits, 2, True).ids):
        return float("inf")
    order, owners = module.launch_align(experts, 3, 16)
    weight = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(2))
    out = torch.full((6, 8), float("nan"))
    bias = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    module.launch_gemm(out, x, weight, bias, order, owners, None, 2, GemmTile(16, 16, 16, 4, 2))
    chosen = enumerate(experts.flatten().tolist())
    expected = torch.stack([weight[e].double() @ x[p // 2].double() + bias[e].double() for p, e in chosen])
    return relative_error(out, expected) / 2e-6


CASES: dict[str, Callable[[ModuleType], float]] = {
    function.__name__: function
    for function in (
        decode,
        long,
        decode8,
        sinks8,
        edits,
        options,
        prefill,
        far,
        rope,
        norm,
        silu,
        copy,
        sample,
        w4,
        gemm,
        moe,
    )
}


def user(mutant: Mutant) -> str:
    """The module that launches the changed code."""
    if mutant.file != "attention":
        return mutant.file
    return "paged_decode"


def healthy(case: str) -> Iterator[str]:
    yield from sorted({user(mutant) for mutant in MUTANTS if mutant.case == case})


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_kernel_without_a_defect_passes(case: str, tmp_path: Path) -> None:
    for module in healthy(case):
        same = load(Mutant(f"healthy {case}", module, '"""', '"""', case), tmp_path, module)
        with Guard():
            assert CASES[case](same) < 1.0


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_defect_is_noticed(mutant: Mutant, tmp_path: Path) -> None:
    broken = load(mutant, tmp_path, user(mutant))
    try:
        with Guard():
            error = CASES[mutant.case](broken)
    except (GuardError, InterpreterError):
        return
    assert error >= 1.0, "the mutant survived"


def test_there_are_enough_mutants() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 30
