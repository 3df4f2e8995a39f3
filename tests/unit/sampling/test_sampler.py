"""The draw: what may be drawn, that a row depends on nothing but itself, and the log probabilities reported."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from inferd_kernels.ops import load_ops

from inferd.request import LogprobParams, SamplingParams
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.sampler import sample_tokens
from inferd.step import NO_TOKEN, SampledToken

OPS = load_ops("cpu", "reference")
LOGITS = [2.0, 1.0, 0.5, 0.0, -1.0, 1.5, -3.0, 0.9]


def draw(logits: torch.Tensor, rows: list[SamplingRow]) -> list[int]:
    return [token.token_id for token in sample_tokens(OPS, logits.clone(), rows, [None] * len(rows))]


def kept_tokens(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> dict[int, float]:
    """The tokens that may be drawn and their probabilities, step by step as the parameters are documented."""
    weights = {token: math.exp(value / temperature) for token, value in enumerate(logits)}
    kept = sorted(weights, key=lambda token: -weights[token])[: top_k or None]
    total, before, nucleus = sum(weights[token] for token in kept), 0.0, []
    for token in kept:
        if before < top_p:
            nucleus.append(token)
        before += weights[token] / total
    largest = max(weights.values())
    nucleus = [token for token in nucleus if weights[token] >= min_p * largest]
    total = sum(weights[token] for token in nucleus)
    return {token: weights[token] / total for token in nucleus}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [(1.0, 0, 1.0, 0.0), (0.7, 3, 1.0, 0.0), (1.3, 0, 0.8, 0.0), (1.0, 0, 1.0, 0.3), (1.5, 5, 0.9, 0.2)],
)  # fmt: skip
def test_draws_follow_the_filtered_distribution(temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    sampling = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=11)
    count = 4000
    rows = [SamplingRow(sampling, None, 0, position) for position in range(count)]
    drawn = Counter(draw(torch.tensor([LOGITS] * count), rows))
    expected = kept_tokens(LOGITS, temperature, top_k, top_p, min_p)
    assert set(drawn) == set(expected)
    for token, probability in expected.items():
        # Five standard deviations of a binomial share.
        bound = 5 * math.sqrt(probability * (1 - probability) / count) + 1e-9
        assert drawn[token] / count == pytest.approx(probability, abs=bound)


def varied_rows(count: int) -> list[SamplingRow]:
    """Rows of every kind, greedy and biased ones among them."""
    kinds = [
        {"temperature": 1.0},
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 20},
        {"temperature": 1.2, "top_p": 0.7},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 1.0, "logit_bias": ((4, 3.0),)},
    ]
    return [
        SamplingRow(SamplingParams(seed=2**64 - 1 - row, **kinds[row % len(kinds)]), None, row % 3, 5 + row)  # type: ignore[arg-type]
        for row in range(count)
    ]


def test_a_row_is_the_same_alone_and_among_31_others() -> None:
    logits = torch.randn(32, 300, generator=torch.Generator().manual_seed(0)) * 3
    rows = varied_rows(32)
    together = draw(logits, rows)
    alone = [draw(logits[index : index + 1], [row])[0] for index, row in enumerate(rows)]
    order = list(range(31, -1, -1))
    reversed_rows = draw(logits[order], [rows[index] for index in order])
    assert together == alone == reversed_rows[::-1]


def test_seed_choice_and_position_each_change_the_draw() -> None:
    logits = torch.zeros(1, 100_000)
    base = draw(logits, [SamplingRow(SamplingParams(seed=1), None, 0, 7)])
    assert base == draw(logits, [SamplingRow(SamplingParams(seed=1), None, 0, 7)])
    for seed, choice, position in [(2, 0, 7), (1 + 2**32, 0, 7), (1, 1, 7), (1, 0, 8)]:
        assert base != draw(logits, [SamplingRow(SamplingParams(seed=seed), None, choice, position)])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_fail_their_row_alone(value: float, temperature: float) -> None:
    logits = torch.tensor([LOGITS] * 3)
    rows = [SamplingRow(SamplingParams(temperature=temperature, top_k=4, seed=row), None, 0, 5) for row in range(3)]
    clean = draw(logits, rows)
    logits[1, 6] = value
    options = [LogprobParams(top_n=1)] * 3
    result = sample_tokens(OPS, logits, rows, list(options))
    assert result[1] == SampledToken(-1)
    assert [result[0].token_id, result[2].token_id] == [clean[0], clean[2]]
    assert result[0].logprobs is not None


def test_masks_that_leave_nothing_fail_their_row() -> None:
    sampling = SamplingParams(allowed_token_ids=(2,))
    rows = [SamplingRow(sampling, None, 0, 5, blocked_token_ids=(2,)), SamplingRow(sampling, None, 0, 5)]
    assert draw(torch.tensor([LOGITS] * 2), rows) == [NO_TOKEN, 2]


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    total = math.log(sum(map(math.exp, LOGITS)))
    sampling = SamplingParams(temperature=0.3, logit_bias=((4, 50.0),), top_k=1)
    rows = [SamplingRow(sampling, None, 0, 5), SamplingRow(SamplingParams(temperature=0.0), None, 0, 5)]
    biased, plain = sample_tokens(
        OPS, torch.tensor([LOGITS] * 2), rows, [LogprobParams(top_n=3, token_ids=(6, 0)), LogprobParams()]
    )
    assert biased.token_id == 4
    assert biased.logprobs is not None
    assert biased.logprobs.logprob == pytest.approx(LOGITS[4] - total, abs=1e-5)
    assert biased.logprobs.rank == 7
    assert biased.logprobs.top_token_ids == [0, 5, 1, 6, 0]
    expected = [LOGITS[token] - total for token in (0, 5, 1, 6, 0)]
    assert biased.logprobs.top_logprobs == pytest.approx(expected, abs=1e-5)
    assert plain.logprobs is not None
    assert (plain.token_id, plain.logprobs.rank, plain.logprobs.top_token_ids) == (0, 1, [])


def test_half_precision_logits_are_drawn_in_float32() -> None:
    logits = torch.tensor([LOGITS], dtype=torch.bfloat16)
    assert draw(logits, [SamplingRow(SamplingParams(temperature=0.0), None, 0, 3)]) == [0]
