"""8-bit cache values to float16: the plain path in the interpreter, the inline PTX by its instructions' definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from inferd_kernels.triton import eight_bit

WORDS = np.arange(65536, dtype=np.uint16)


def values(words: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """[N, 2] float16: the low and the high byte of each word, by torch's casts."""
    return torch.from_numpy(words.astype(np.uint16).view(np.uint8).copy()).view(dtype).half().numpy().reshape(-1, 2)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return np.array_equal(one.astype(np.float32), other.astype(np.float32), equal_nan=True)


@triton.jit
def spread(x_ptr, pairs_ptr, flat_ptr, even_ptr, odd_ptr, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    pairs = tl.load(pairs_ptr + at)
    even, odd = eight_bit.widen_pairs(pairs, x_ptr.dtype.element_ty, tl.float16, False)
    tl.store(even_ptr + at, even)
    tl.store(odd_ptr + at, odd)
    both = tl.arange(0, 2 * COUNT)
    tl.store(flat_ptr + both, eight_bit.widen(tl.load(x_ptr + both), tl.float16, False))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_the_plain_path_is_torch_s_cast_of_every_byte(dtype: torch.dtype) -> None:
    words = torch.from_numpy(WORDS.view(np.int16).copy())
    flat, even, odd = (torch.empty(count, dtype=torch.float16) for count in (131072, 65536, 65536))
    spread[(1,)](words.view(dtype), words, flat, even, odd, COUNT=65536)
    expected = values(WORDS, dtype)
    assert same(torch.stack((even, odd), 1).numpy(), expected)
    assert same(flat.view(-1, 2).numpy(), expected)


def permute_bytes(low: np.ndarray, high: np.ndarray, selector: int) -> np.ndarray:
    """prmt.b32: byte i of the result is byte (selector >> 4 i) & 7 of high : low."""
    wide = high.astype(np.uint64) << 32 | low
    picked = [wide >> (8 * (selector >> (4 * i) & 7)) & 0xFF for i in range(4)]
    return sum(byte << (8 * i) for i, byte in enumerate(picked)).astype(np.uint32)


def halves(word: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(word).view(np.float16).reshape(-1, 2)


def subtract_halves(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(halves(one) - halves(other)).view(np.uint32).reshape(-1)


def convert_fp8(pair: np.ndarray) -> np.ndarray:
    """cvt.rn.f16x2.e4m3x2: the low byte becomes the low half."""
    return np.ascontiguousarray(values(pair & 0xFFFF, torch.float8_e4m3fn)).view(np.uint32).reshape(-1)


INSTRUCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "xor.b32": lambda one, other: one ^ other,
    "mov.b32": lambda one: one,
    "prmt.b32": permute_bytes,
    "sub.f16x2": subtract_halves,
    "cvt.rn.f16x2.e4m3x2": convert_fp8,
}


def execute(ptx: str, word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two results of inline PTX over registers $0, $1 (out) and $2 (in)."""
    registers = {"$2": word}
    for statement in ptx.strip("{} ").split(";"):
        name, _, rest = statement.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = (part.strip() for part in rest.replace("{x, y}", "x").split(","))
        operands = [
            registers[source] if source in registers else np.full_like(word, int(source, 0)) for source in sources
        ]
        if name == "prmt.b32":
            operands[2] = int(operands[2][0])
        registers[target] = INSTRUCTIONS[name](*operands)
    return registers["$0"], registers["$1"]


@pytest.mark.parametrize(
    ("ptx", "dtype"),
    [
        (eight_bit.INT8_PAIRS_TO_HALF, torch.int8),
        (eight_bit.FP8_PAIRS_TO_HALF, torch.float8_e4m3fn),
        (eight_bit.INT8_TO_HALF, torch.int8),
    ],
)
def test_the_inline_ptx_gives_what_the_plain_path_gives(ptx: tl.constexpr, dtype: torch.dtype) -> None:
    first, second = WORDS, np.random.default_rng(0).permutation(WORDS)
    word = first.astype(np.uint32) | second.astype(np.uint32) << 16
    low, high = (halves(result) for result in execute(ptx.value, word))
    one, other = values(first, dtype), values(second, dtype)
    if ptx is eight_bit.INT8_TO_HALF:  # four values in memory order
        assert same(low, one)
        assert same(high, other)
    else:  # the even ones of both words, the odd ones of both words
        assert same(low, np.stack((one[:, 0], other[:, 0]), 1))
        assert same(high, np.stack((one[:, 1], other[:, 1]), 1))
