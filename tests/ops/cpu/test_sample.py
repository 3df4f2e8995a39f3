"""Sampled tokens are those of the reference, row by row."""

from __future__ import annotations

import pytest
import torch
from inferd_kernels import reference
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import Ops, SamplingBatch

REFERENCE = Ops()


def make_batch(rows: int, **columns: float | list[float]) -> SamplingBatch:
    generator = torch.Generator().manual_seed(rows)

    def column(name: str, default: float, dtype: torch.dtype) -> torch.Tensor:
        value = columns.get(name, default)
        return torch.tensor(value if isinstance(value, list) else [value] * rows, dtype=dtype)

    temperature = column("temperature", 1.0, torch.float32)
    return SamplingBatch(
        temperature=temperature,
        top_k=column("top_k", 0, torch.int32),
        top_p=column("top_p", 1.0, torch.float32),
        min_p=column("min_p", 0.0, torch.float32),
        seeds=torch.randint(-(2**63), 2**63 - 1, (rows,), generator=generator),
        choices=torch.randint(0, 9, (rows,), generator=generator, dtype=torch.int32),
        positions=torch.randint(0, 2**33, (rows,), generator=generator),
        all_greedy=bool((temperature == 0).all()),
    )


def rows_of(batch: SamplingBatch, rows: slice) -> SamplingBatch:
    names = ("temperature", "top_k", "top_p", "min_p", "seeds", "choices", "positions")
    return SamplingBatch(*(getattr(batch, name)[rows] for name in names), all_greedy=batch.all_greedy)


@pytest.mark.parametrize("vocab", [1, 3, 64, 1003])
@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 5.0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_p": 0.9},
        {"top_p": 0.01},
        {"min_p": 0.2},
        {"temperature": 2.0, "top_k": 40, "top_p": 0.8, "min_p": 0.02},
    ],
    ids=str,
)
def test_tokens_are_those_of_the_reference(ops: NativeOps, vocab: int, columns: dict[str, float]) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randn(40, vocab, generator=generator) * 3
    logits[20:] = (logits[20:] * 2).round() / 2  # many ties
    batch = make_batch(40, **columns)
    assert ops.sample(logits, batch).tolist() == REFERENCE.sample(logits, batch).tolist()


def test_tokens_of_a_flat_row_cover_what_is_kept(ops: NativeOps) -> None:
    logits = torch.zeros(400, 8)
    logits[:, 5:] = -3.0
    tokens = ops.sample(logits, make_batch(400, top_p=0.5))
    assert set(tokens.tolist()) == {0, 1, 2, 3, 4}
    counts = torch.bincount(tokens, minlength=8)[:5]
    assert int(counts.min()) > 40
    assert int(counts.max()) < 120


def test_a_row_does_not_depend_on_its_neighbours(ops: NativeOps) -> None:
    logits = torch.randn(6, 500) * 2
    batch = make_batch(
        6, temperature=[0.0, 1.0, 0.7, 1.5, 0.0, 1.0], top_k=[0, 5, 0, 50, 3, 0], top_p=[1, 1, 0.9, 0.5, 1, 1]
    )
    together = ops.sample(logits, batch)
    assert together.tolist() == [int(ops.sample(logits[i : i + 1], rows_of(batch, slice(i, i + 1)))) for i in range(6)]


def test_greedy_takes_the_lowest_of_equals_and_shows_what_is_not_a_number(ops: NativeOps) -> None:
    logits = torch.randn(5, 2050)
    logits[0, [700, 3, 2049]] = 9.0
    logits[1, 2049] = 9.0
    logits[2] = float("-inf")
    logits[3, 1500] = float("nan")
    logits[4, 77] = float("inf")
    assert ops.sample(logits, make_batch(5, temperature=0.0)).tolist() == [3, 2049, 0, 1500, 77]
    broken = torch.full((2, 70), float("nan"))
    assert ops.sample(broken, make_batch(2, top_k=9, top_p=0.5)).tolist() == [0, 0]


def test_noise_of_the_reference_is_finite() -> None:
    """The largest uniform is below 1: an infinite noise would pick any token, however unlikely."""
    largest_word = torch.tensor(2**32 - 1)
    uniform = ((largest_word >> 9).float() + 0.5) * 2.0**-23
    assert float(uniform) < 1.0
    noise = reference.gumbel_noise(4096, torch.arange(8), torch.zeros(8, dtype=torch.int32), torch.arange(8))
    assert noise.isfinite().all()
