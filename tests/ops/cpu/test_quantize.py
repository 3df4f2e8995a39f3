"""Quantization at load: ggml's blocks, an error that is the real one, and no worse than ggml's own."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as ggml_dequantize
from gguf.quants import quantize as ggml_quantize
from inferd_kernels import reference
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.quantize import quantize


def error_of(kind: str, weight: torch.Tensor) -> float:
    known = GGMLQuantizationType[kind.upper()]
    values = torch.from_numpy(ggml_dequantize(ggml_quantize(weight.numpy(), known), known))
    return float((values - weight).norm() / weight.norm())


@pytest.mark.parametrize(("bits", "limit"), [(8, 0.007), (4, 0.09)])
@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_the_stated_error_is_the_real_one(bits: int, limit: float, shift: float) -> None:
    weight = torch.randn(50, 128) * 0.05 + shift
    result = quantize(weight, bits)
    values = reference.dequantize(result.weight)
    real = float((values - weight).norm() / weight.norm())
    assert result.error == pytest.approx(real, rel=1e-4)
    assert real < limit
    kinds = ("q8_0",) if bits == 8 else ("q4_0", "q4_1")
    assert result.weight.format in kinds
    assert real <= min(error_of(kind, weight) for kind in kinds) * 1.001


def test_four_bits_choose_the_better_form() -> None:
    assert quantize(torch.rand(8, 64) + 1.0, 4).weight.format == "q4_1"
    codes = torch.randint(-8, 8, (64, 32)).float()
    codes[:, 0] = -8.0
    symmetric = quantize(codes * 0.5, 4)
    assert symmetric.weight.format == "q4_0"
    assert symmetric.error == 0.0


def test_rows_in_chunks_are_rows_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(23, 64)
    whole = quantize(weight, 4)
    monkeypatch.setattr("inferd_kernels.quantize.CHUNK_VALUES", 200)
    chunked = quantize(weight, 4)
    assert torch.equal(chunked.weight.blocks, whole.weight.blocks)
    assert chunked.error == pytest.approx(whole.error)


def test_native_products_of_quantized_weights(ops: NativeOps) -> None:
    weight, x = torch.randn(40, 96).bfloat16(), torch.randn(5, 96)
    for bits, limit in ((8, 0.01), (4, 0.12)):
        out = ops.linear(x, ops.prepare_weight(quantize(weight, bits).weight))
        expected = x @ weight.float().T
        assert float((out - expected).norm() / expected.norm()) < limit


def test_what_cannot_be_quantized() -> None:
    with pytest.raises(ValueError, match="bits 3"):
        quantize(torch.zeros(2, 32), 3)
    with pytest.raises(ValueError, match="width of 40"):
        quantize(torch.zeros(2, 40), 4)
    for bits in (4, 8):
        for value in (float("nan"), float("inf"), 1e9):
            with pytest.raises(ValueError, match="not finite"):
                quantize(torch.full((2, 32), value), bits)
        assert quantize(torch.zeros(2, 32), bits).error == 0.0
