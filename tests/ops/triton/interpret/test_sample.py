"""Sampling gives exactly the reference's tokens; penalties and the grammar mask are exact."""

import math

import pytest
import torch
import triton
import triton.language as tl
from inferd_kernels import reference
from inferd_kernels.ops import Ops, SamplingBatch
from inferd_kernels.proof.guard import Guard
from inferd_kernels.triton import device
from inferd_kernels.triton.backend import TritonOps

REFERENCE, TRITON = Ops(), TritonOps()


def batch(rows: list[tuple[float, int, float, float]], seed: int = 5) -> SamplingBatch:
    """rows of (temperature, top_k, top_p, min_p)."""
    generator = torch.Generator().manual_seed(seed)
    count = len(rows)
    return SamplingBatch(
        temperature=torch.tensor([row[0] for row in rows]),
        top_k=torch.tensor([row[1] for row in rows], dtype=torch.int32),
        top_p=torch.tensor([row[2] for row in rows]),
        min_p=torch.tensor([row[3] for row in rows]),
        seeds=torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator),
        choices=torch.arange(count, dtype=torch.int32),
        positions=torch.randint(0, 2**33, (count,), generator=generator),
        all_greedy=False,
    )


ROWS = [
    (0.0, 0, 1.0, 0.0),
    (1.0, 0, 1.0, 0.0),
    (0.7, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (2.0, 0, 1.0, 0.05),
    (1.5, 40, 0.9, 0.01),
    (1.0, 1, 0.5, 0.5),
    (1.0, 2000, 1.0, 0.0),
    (1.0, 0, 0.0, 0.0),
    (0.01, 3, 0.99, 1.0),
]


@pytest.mark.parametrize(
    ("dtype", "vocab"), [(torch.float32, 37), (torch.bfloat16, 1003), (torch.float16, 70), (torch.float32, 4099)]
)
def test_tokens_equal_the_reference(dtype: torch.dtype, vocab: int) -> None:
    parameters = batch(ROWS, seed=vocab)
    logits = (torch.randn(len(ROWS), vocab, generator=torch.Generator().manual_seed(vocab)) * 3).to(dtype)
    with Guard():
        out = TRITON.sample(logits, parameters)
    assert out.tolist() == REFERENCE.sample(logits, parameters).tolist()


@pytest.mark.parametrize("ties", [1, 3])
def test_many_draws_equal_the_reference(ties: int) -> None:
    rows = [(1.0, 8, 0.9, 0.0)] * 8
    parameters = batch(rows, seed=ties)
    logits = (torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * ties).round() / ties
    logits = logits.expand(8, 64).contiguous()
    out = TRITON.sample(logits, parameters)
    assert out.tolist() == REFERENCE.sample(logits, parameters).tolist()
    assert len(set(out.tolist())) > 2


def test_rows_do_not_depend_on_their_neighbours() -> None:
    parameters = batch(ROWS)
    logits = torch.randn(len(ROWS), 300, generator=torch.Generator().manual_seed(2))
    together = TRITON.sample(logits, parameters)
    for row in (1, 3, 5):
        one = slice(row, row + 1)
        fields = {
            name: getattr(parameters, name)[one]
            for name in ("temperature", "top_k", "top_p", "min_p", "seeds", "choices", "positions")
        }
        assert TRITON.sample(logits[one], SamplingBatch(**fields, all_greedy=False))[0] == together[row]


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    logits = torch.zeros(2, 5000)
    logits[0, 4999] = logits[0, 4100] = logits[0, 17] = 2.0
    assert TRITON.sample(logits, batch([(0.0, 0, 1.0, 0.0)] * 2)).tolist() == [17, 0]


def test_refused_tokens_are_never_drawn() -> None:
    logits = torch.full((2, 100), -math.inf)
    logits[:, 41] = 0.5
    assert TRITON.sample(logits, batch([(1.0, 5, 0.9, 0.1)] * 2)).tolist() == [41] * 2


@triton.jit
def logarithm(x_ptr, y_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(y_ptr + i, device.log(tl.load(x_ptr + i)))


def test_logarithm_is_accurate_near_one_and_everywhere() -> None:
    near = 1 - torch.arange(1, 1025).double() * 2.0**-24
    spread = torch.logspace(-37, 37, 3072, dtype=torch.float64)
    x = torch.cat((near, spread)).float()
    out = torch.empty_like(x)
    logarithm[(4,)](x, out, N=1024)
    true = x.double().log()
    ulp = torch.finfo(torch.float32).eps * true.abs()
    assert float(((out.double() - true).abs() / ulp.clamp(min=1e-38)).max()) < 2.5


def test_noise_is_finite_where_the_uniform_would_round_to_one() -> None:
    """word >> 8 = 2^24 - 1 rounds to u = 1 in float32; such a token must not win over everything else."""
    parameters = batch([(1.0, 1, 1.0, 0.0)])
    parameters.seeds[0], parameters.choices[0], parameters.positions[0] = 7, 0, 35
    noise = reference.gumbel_noise(12377, parameters.seeds, parameters.choices, parameters.positions)
    assert 16 < float(noise[0, 12376]) < 17
    logits = torch.zeros(1, 12377)
    logits[0, 5] = 1.0
    assert TRITON.sample(logits, parameters).tolist() == REFERENCE.sample(logits, parameters).tolist() == [5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_penalties(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(3)).to(dtype)
    rows = torch.tensor([3, 0, 4], dtype=torch.int32)
    tokens = torch.tensor([[3, 49, 7, -1], [0, 1, 2, 3], [-1, -1, -1, -1]], dtype=torch.int32)
    counts = torch.tensor([[2, 0, 1, 0], [1, 1, 5, 0], [0, 0, 0, 0]], dtype=torch.int32)
    repetition, presence = torch.tensor([1.5, 1.0, 2.0]), torch.tensor([0.5, 0.0, 1.0])
    frequency = torch.tensor([0.25, 1.0, 1.0])
    expected = logits.float()
    REFERENCE.penalize(expected, rows, tokens, counts, repetition, presence, frequency)
    with Guard():
        TRITON.penalize(logits, rows, tokens, counts, repetition, presence, frequency)
    assert torch.equal(logits, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab", [31, 32, 1030])
def test_grammar_mask(vocab: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(vocab)
    bits = torch.randint(-(2**31), 2**31, (2, -(-vocab // 32)), generator=generator, dtype=torch.int64).int()
    rows = torch.tensor([2, 0], dtype=torch.int32)
    logits = torch.randn(3, vocab, generator=generator).to(dtype)
    expected = logits.clone()
    REFERENCE.mask_tokens(expected, rows, bits)
    refused = [int(bits[1, token // 32]) >> token % 32 & 1 == 0 for token in range(vocab)]
    assert torch.equal(expected[0] == -math.inf, torch.tensor(refused))
    with Guard():
        TRITON.mask_tokens(logits, rows, bits)
    assert torch.equal(logits, expected)
