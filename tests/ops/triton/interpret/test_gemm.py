"""Small matmuls, 4-bit and fp8 weights, and the mixture of experts, against float64."""

from typing import get_args

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize as gguf_quantize
from inferd_kernels import reference, reference_gpu
from inferd_kernels.ops import Activation, Ops, Routes
from inferd_kernels.proof.guard import Guard
from inferd_kernels.proof.problems import relative_error
from inferd_kernels.triton import gemm_small, linear, moe
from inferd_kernels.triton.backend import TritonOps
from inferd_kernels.triton.tiles import GemmTile
from inferd_kernels.weights import Fp8Weight, QuantizedWeight

REFERENCE, TRITON = Ops(), TritonOps()
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 4e-3}
TILE = GemmTile(16, 32, 32, 4, 2)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("tokens", "columns", "depth"), [(1, 32, 32), (17, 33, 95), (16, 70, 64)])
@pytest.mark.parametrize("biased", [False, True])
def test_small_gemm(
    dtype: torch.dtype, tokens: int, columns: int, depth: int, biased: bool, generator: torch.Generator
) -> None:
    x, weight = (torch.randn(rows, depth, generator=generator).to(dtype) for rows in (tokens, columns))
    bias = torch.randn(columns, generator=generator).to(dtype) if biased else None
    out = torch.full((tokens, columns), float("nan"), dtype=dtype)
    with Guard():
        gemm_small.launch(out, x, weight, bias, None, TILE)
    expected = x.double() @ weight.double().T + (bias.double() if bias is not None else 0)
    assert relative_error(out, expected) < TOLERANCE[dtype]
    alone = torch.empty(1, columns, dtype=dtype)
    gemm_small.launch(alone, x[-1:], weight, bias, None, TILE)
    assert torch.equal(alone[0], out[-1])


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_fp8_linear_quantizes_tokens_and_applies_both_scales(dtype: torch.dtype, generator: torch.Generator) -> None:
    x = torch.randn(5, 96, generator=generator).to(dtype)
    weight = torch.randn(70, 96, generator=generator)
    values, scale = reference_gpu.quantize_rows(weight, torch.float8_e4m3fn)
    bias = torch.randn(70, generator=generator).to(dtype)
    with Guard():
        out = linear.linear(x, linear.Fp8Weight(values, scale), bias)
    tokens, token_scale = reference_gpu.quantize_rows(x, torch.float8_e4m3fn)
    expected = (tokens.double() * token_scale.double()[:, None]) @ (values.double() * scale.double()[:, None]).T
    assert relative_error(out, expected + bias.double()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_many_tokens_times_fp8_are_rounded_to_their_own_dtype(dtype: torch.dtype, generator: torch.Generator) -> None:
    """torch multiplies from 65 tokens on: here its product on a CPU; cuBLAS' has not run this way."""
    x = torch.randn(65, 96, generator=generator).to(dtype)
    values, scale = reference_gpu.quantize_rows(torch.randn(64, 96, generator=generator), torch.float8_e4m3fn)
    tokens, token_scale = reference_gpu.quantize_rows(x, torch.float8_e4m3fn)
    expected = (tokens.double() * token_scale.double()[:, None]) @ (values.double() * scale.double()[:, None]).T
    out = linear.linear(x, linear.Fp8Weight(values, scale))
    assert out.dtype == dtype
    assert relative_error(out, expected) < {torch.float32: 1e-5, torch.float16: 4e-4, torch.bfloat16: 4e-3}[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offsets", [False, True])
def test_4_bit_linear(dtype: torch.dtype, offsets: bool, generator: torch.Generator) -> None:
    packed = torch.randint(0, 256, (70, 64), generator=generator, dtype=torch.uint8)
    scale = torch.rand(70, 4, generator=generator)
    offset = torch.randn(70, 4, generator=generator) if offsets else None
    x = torch.randn(5, 128, generator=generator).to(dtype)
    with Guard():
        out = linear.linear(x, linear.W4Weight(packed, scale, offset))
    dense = reference_gpu.unpack_w4(packed, scale, offset, torch.float64)
    assert relative_error(out, x.double() @ dense.T) < TOLERANCE[dtype]
    assert torch.equal(linear.W4Weight(packed, scale, offset).values(torch.float64).float(), dense.float())


def test_every_byte_unpacks_exactly() -> None:
    """Identity activations read each weight out: all 256 bytes, both planes."""
    packed = torch.arange(256, dtype=torch.uint8).repeat_interleave(32).view(256, 32)
    scale = torch.ones(256, 2)
    out = linear.linear(torch.eye(64).bfloat16(), linear.W4Weight(packed, scale, None))
    assert torch.equal(out.float().T, reference_gpu.unpack_w4(packed, scale))


@pytest.mark.parametrize("kind", ["q4_0", "q4_1"])
def test_ggml_blocks_become_planes_of_the_same_values(kind: str, generator: torch.Generator) -> None:
    size = 18 if kind == "q4_0" else 20
    blocks = torch.randint(0, 256, (6, 4, size), generator=generator, dtype=torch.uint8)
    numbers = torch.randn(6, 4, (size - 16) // 2, generator=generator).half()
    blocks[..., : size - 16] = numbers.view(torch.uint8).view(6, 4, size - 16)
    weight = QuantizedWeight(blocks.view(6, -1), kind, (6, 128))
    prepared = linear.prepare_weight(weight)
    assert isinstance(prepared, linear.W4Weight)
    dense = reference.dequantize(weight)
    assert torch.allclose(prepared.values(torch.float32), dense, rtol=1e-6, atol=1e-5)
    ids = torch.tensor([5, 0, 5])
    assert torch.equal(linear.embedding(ids, prepared, torch.float32), prepared.values(torch.float32)[ids])


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_experts(dtype: torch.dtype, biased: bool, activation: Activation, generator: torch.Generator) -> None:
    tokens, width, inner, count = 7, 32, 24, 6
    x = torch.randn(tokens, width, generator=generator).to(dtype)
    logits = torch.randn(tokens, count, generator=generator)
    logits[:, 3] = -9.0  # an expert without tokens
    gate_up = (torch.randn(count, 2 * inner, width, generator=generator) / 6).to(dtype)
    down = (torch.randn(count, width, inner, generator=generator) / 5).to(dtype)
    sizes = (count, 2 * inner), (count, width)
    biases = tuple(torch.randn(size, generator=generator) for size in sizes) if biased else None
    weights = TRITON.prepare_experts(gate_up, down, activation, biases, dtype)
    with Guard():
        routes = TRITON.route(logits, 2, not biased)
        out = TRITON.experts(x, weights, routes)
    chosen = REFERENCE.route(logits, 2, not biased)
    assert torch.equal(routes.ids, chosen.ids)
    assert torch.allclose(routes.weights, chosen.weights, atol=1e-6)
    wide = REFERENCE.prepare_experts(gate_up.double(), down.double(), activation, biases)
    assert relative_error(out, REFERENCE.experts(x.double(), wide, chosen)) < 3 * TOLERANCE[dtype]
    one = Routes(routes.ids[4:5], routes.weights[4:5])
    assert torch.equal(out[4], TRITON.experts(x[4:5], weights, one)[0])


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "fp8"])
def test_quantized_experts_are_computed_as_floats(kind: str, generator: torch.Generator) -> None:
    dense = torch.randn(3, 64, 64, generator=generator) / 8, torch.randn(3, 64, 32, generator=generator) / 5
    if kind == "fp8":
        parts = [[Fp8Weight(*reference.quantize_rows(w, torch.float8_e4m3fn)) for w in side] for side in dense]
    else:
        parts = [[QuantizedWeight(*quantized(w, kind)) for w in side] for side in dense]
    ours, theirs = (ops.prepare_experts(*parts, "silu", None, torch.float32) for ops in (TRITON, REFERENCE))
    x, routes = (
        torch.randn(5, 64, generator=generator),
        REFERENCE.route(torch.randn(5, 3, generator=generator), 2, True),
    )
    assert relative_error(TRITON.experts(x, ours, routes), REFERENCE.experts(x, theirs, routes)) < 2e-6


def quantized(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, str, tuple[int, int]]:
    blocks = gguf_quantize(weight.numpy(), GGMLQuantizationType[kind.upper()])
    return torch.from_numpy(blocks), kind, (weight.shape[0], weight.shape[1])


def test_routing_breaks_ties_towards_the_lowest_expert(generator: torch.Generator) -> None:
    logits = torch.randn(9, 10, generator=generator).round()
    experts, weights = torch.empty(9, 3, dtype=torch.int32), torch.empty(9, 3)
    with Guard():
        moe.launch_route(experts, weights, logits, True)
    expected = REFERENCE.route(logits, 3, True)
    assert torch.equal(experts, expected.ids)
    assert torch.allclose(weights, expected.weights, atol=1e-6)


@pytest.mark.parametrize("pairs", [1, 16, 40])
def test_alignment_lists_every_pair_once_in_order(pairs: int, generator: torch.Generator) -> None:
    experts = torch.randint(0, 5, (pairs, 1), generator=generator, dtype=torch.int32)
    with Guard():
        order, owners = moe.launch_align(experts, 6, 16)
    used = int((owners >= 0).sum())
    assert (owners[used:] == -1).all()
    tiles = order.view(-1, 16)[:used]
    listed = [int(pair) for tile in tiles for pair in tile if pair < pairs]
    assert sorted(listed) == list(range(pairs))
    for tile, owner in zip(tiles, owners[:used].tolist(), strict=True):
        mine = [int(pair) for pair in tile if pair < pairs]
        assert all(int(experts[pair, 0]) == owner for pair in mine)
        assert mine == sorted(mine)
