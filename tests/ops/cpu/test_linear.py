"""Products of packed weights against exact products of the same rounded activations, and row by row against batches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from inferd_kernels import reference
from inferd_kernels.cpu.convert import PackedWeight
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Ops
from inferd_kernels.weights import QuantizedWeight, WeightRows

REFERENCE = Ops()

FORMATS = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k")
ROWS = (1, 2, 3, 4, 7, 16, 17, 33, 70)


def rounded(x: torch.Tensor, kind: str) -> torch.Tensor:
    """Activations as the kernels see them: groups of 32 in 8 bits, for 8-bit weights in 15."""
    groups = x.unflatten(-1, (-1, 32))
    limit = 127.0 * 128.0 if kind == "q8_0" else 127.0
    largest = groups.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 0, limit / largest, 0.0)
    return ((groups * inverse).round() * (largest / limit)).flatten(-2)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(33, 256), (61, 768)])
def test_quantized_products(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str, shape: tuple[int, int]
) -> None:
    weight = random_blocks(kind, *shape)
    packed, values = ops.prepare_weight(weight), reference.dequantize(weight)
    bias = torch.randn(shape[0])
    for rows in ROWS:
        x = torch.randn(rows, shape[1]) * torch.rand(rows, 1) * 8
        x[:, 32:64] = 0.0  # a group without a scale
        out = ops.linear(x, packed, bias)
        exact = rounded(x, kind).double() @ values.double().T + bias.double()
        assert relative_error(out, exact) < 1e-5
        unrounded = REFERENCE.linear(x.double(), values.double(), bias.double())
        assert relative_error(out, unrounded) < (1e-4 if kind == "q8_0" else 2e-2)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_does_not_depend_on_the_batch(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str
) -> None:
    packed = ops.prepare_weight(random_blocks(kind, 49, 256))
    x = torch.randn(70, 256)
    alone = torch.cat([ops.linear(x[i : i + 1], packed) for i in range(70)])
    for rows in (*range(1, 22), 31, 32, 33, 63, 64, 65, 70):
        assert torch.equal(ops.linear(x[:rows], packed), alone[:rows])
    assert torch.equal(ops.linear(x.flip(0), packed), alone.flip(0))


def test_threads_do_not_change_a_bit(
    engines: dict[tuple[str, int], NativeOps], random_blocks: Callable[..., QuantizedWeight]
) -> None:
    weight, x = random_blocks("q4_1", 300, 512), torch.randn(300, 512)
    for isa in {isa for isa, _ in engines}:
        one, two = engines[isa, 1], engines[isa, 2]
        assert torch.equal(one.linear(x, one.prepare_weight(weight)), two.linear(x, two.prepare_weight(weight)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float_weights(ops: NativeOps, dtype: torch.dtype) -> None:
    weight = torch.randn(45, 77).to(dtype)
    packed, x, bias = ops.prepare_weight(weight, dtype), torch.randn(70, 77), torch.randn(45)
    alone = torch.cat([ops.linear(x[i : i + 1], packed, bias) for i in range(70)])
    assert relative_error(alone, x.double() @ weight.double().T + bias.double()) < 1e-6
    for rows in ROWS:
        assert torch.equal(ops.linear(x[:rows], packed, bias), alone[:rows])


def test_other_activation_types_and_shapes(ops: NativeOps, random_blocks: Callable[..., QuantizedWeight]) -> None:
    weight = random_blocks("q8_0", 5, 64)
    packed, x = ops.prepare_weight(weight), torch.randn(2, 3, 64)
    out = ops.linear(x.bfloat16(), packed)
    assert out.shape == (2, 3, 5)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ops.linear(x.bfloat16().float(), packed).bfloat16())
    assert ops.linear(x[:, :0], packed).shape == (2, 0, 5)
    assert ops.linear(x.transpose(0, 1), packed).equal(ops.linear(x, packed).transpose(0, 1))
    with pytest.raises(ValueError, match="32 columns, the weight 64"):
        ops.linear(x[..., :32], packed)


def test_formats_without_a_kernel_become_float(ops: NativeOps) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    values = torch.randn(7, 64)
    blocks = torch.from_numpy(quantize(values.numpy(), GGMLQuantizationType.F16)).view(torch.uint8)
    weight = QuantizedWeight(blocks, "f16", (7, 64))
    packed, x = ops.prepare_weight(weight), torch.randn(3, 64)
    assert packed.format == "f32"
    assert relative_error(ops.linear(x, packed), x.double() @ values.half().double().T) < 1e-6


@pytest.mark.parametrize("kind", FORMATS)
def test_embedding_rows_are_the_dequantized_ones(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str
) -> None:
    weight = random_blocks(kind, 37, 512)
    ids = torch.tensor([36, 0, 5, 5, 16])
    rows = ops.embedding(ids, ops.prepare_weight(weight), torch.float32)
    torch.testing.assert_close(rows, reference.dequantize(weight)[ids], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embedding_of_float_rows(ops: NativeOps, dtype: torch.dtype) -> None:
    table, ids = torch.randn(21, 30).to(dtype), torch.tensor([20, 3, 3])
    packed = ops.prepare_weight(table, dtype)
    assert torch.equal(ops.embedding(ids, packed, torch.float32), table[ids].float())
    assert torch.equal(ops.embedding(ids, packed, torch.bfloat16), table[ids].bfloat16())
    with pytest.raises(IndexError):
        ops.embedding(torch.tensor([0, 21]), packed, torch.float32)
    with pytest.raises(IndexError):
        ops.embedding(torch.tensor([-1]), packed, torch.float32)


@pytest.mark.parametrize("kind", ["f32", "bf16", "q4_1", "q6_k", "q8_0"])
def test_a_matrix_that_comes_in_blocks_is_packed_like_the_whole(
    ops: NativeOps, random_blocks: Callable[..., QuantizedWeight], kind: str
) -> None:
    """Blocks end within panels, and some fill none."""
    if kind in ("f32", "bf16"):
        values = torch.randn(77, 256)
        pieces: list[torch.Tensor | QuantizedWeight] = list(values.split([5, 33, 3, 32, 4]))
        dtype = torch.float32 if kind == "f32" else torch.bfloat16
        whole = ops.prepare_weight(values, dtype)
    else:
        weight = random_blocks(kind, 77, 256)
        pieces = [QuantizedWeight(part, kind, (len(part), 256)) for part in weight.blocks.split([5, 33, 3, 32, 4])]
        dtype, whole = torch.float32, ops.prepare_weight(weight)
    packed = ops.pack_rows(WeightRows((77, 256), pieces), dtype)
    assert isinstance(whole, PackedWeight)
    assert (packed.format, packed.shape) == (whole.format, whole.shape) == (kind, (77, 256))
    assert torch.equal(packed.blocks, whole.blocks)
