"""The repaired interpreter itself: bf16 and fp8 behave as torch's conversions do."""

import pytest
import torch
import triton
import triton.language as tl
from inferd_kernels.proof.problems import relative_error

SMALL = (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


@triton.jit
def cast(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(y_ptr + i, tl.load(x_ptr + i).to(y_ptr.dtype.element_ty))


@triton.jit
def multiply_add(x_ptr, y_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    tl.store(y_ptr + tl.arange(0, N), x * x + x)


@triton.jit
def product(a_ptr, b_ptr, c_ptr, N: tl.constexpr):
    i = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    tl.store(c_ptr + i, tl.dot(tl.load(a_ptr + i), tl.load(b_ptr + i)))


@pytest.mark.parametrize("source", [torch.float32, torch.float16, *SMALL])
@pytest.mark.parametrize("target", [torch.float32, torch.float16, *SMALL])
def test_cast_equals_torch_and_saturates(source: torch.dtype, target: torch.dtype, generator: torch.Generator) -> None:
    x = (torch.randn(4096, generator=generator) * 300).to(torch.float32)
    x = x.clamp(-440, 440) if source == torch.float8_e4m3fn else x
    x = x.to(source)
    out = torch.empty(4096, dtype=target)
    cast[(1,)](x, out, N=4096)
    wide = x.float()
    limit = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}.get(target)
    expected = (wide.clamp(-limit, limit) if limit else wide).to(target)
    assert torch.equal(out.float(), expected.float())


def test_bfloat16_arithmetic_rounds_each_step(generator: torch.Generator) -> None:
    x = torch.randn(1024, generator=generator).bfloat16()
    out = torch.empty_like(x)
    multiply_add[(1,)](x, out, N=1024)
    assert torch.equal(out, x * x + x)


@pytest.mark.parametrize("dtype", SMALL)
def test_dot_of_small_floats(dtype: torch.dtype, generator: torch.Generator) -> None:
    a, b = (torch.randn(32, 32, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty(32, 32)
    product[(1,)](a, b, out, N=32)
    assert relative_error(out, a.double() @ b.double()) < 1e-6
