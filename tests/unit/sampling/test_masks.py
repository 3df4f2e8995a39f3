"""Token masks on logits."""

from __future__ import annotations

import math
import random

import pytest
import torch
from inferd_kernels.ops import load_ops

from inferd.request import LogprobParams, SamplingParams
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.masks import apply_masks
from inferd.sampling.sampler import sample_tokens
from inferd.step import NO_TOKEN, NOT_FINITE

OPS = load_ops("cpu", "reference")
GREEDY = SamplingParams(temperature=0.0)


def pack(allowed: set[int], size: int) -> bytes:
    return sum(1 << token for token in allowed).to_bytes(size, "little")


@pytest.mark.parametrize("vocab_size", [1, 7, 8, 9, 33, 250])
@pytest.mark.parametrize("size", [0, 1, 4, 32, 36])
def test_bits_are_tokens_and_rows_without_a_mask_stay(vocab_size: int, size: int) -> None:
    choose = random.Random(vocab_size * 100 + size)
    wanted = [{token for token in range(8 * size) if choose.random() < 0.5} for _ in range(2)]
    for rows, count in (([0, 2], 3), ([0, 1], 2)):
        logits = torch.randn(count, vocab_size)
        before = logits.clone()
        apply_masks(logits, rows, [pack(allowed, size) for allowed in wanted])
        for row, allowed in zip(rows, wanted, strict=True):
            kept = {token for token in range(vocab_size) if logits[row, token] > -math.inf}
            assert kept == {token for token in allowed if token < vocab_size}
            assert all(logits[row, token] == before[row, token] for token in kept)
        for row in set(range(count)) - set(rows):
            assert torch.equal(logits[row], before[row])


def test_the_draw_obeys_the_mask_and_the_log_probabilities_do_not() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    rows = [SamplingRow(GREEDY, None, 0, 5, mask=pack({2, 3}, 4)), SamplingRow(GREEDY, None, 0, 5)]
    rows.append(SamplingRow(GREEDY, None, 0, 5, blocked_token_ids=(2,), mask=pack({2, 3}, 1)))
    tokens = sample_tokens(OPS, logits, rows, [LogprobParams(top_n=1)] * 3)

    assert [token.token_id for token in tokens] == [2, 0, 3]
    expected = torch.tensor([3.0, 2.0, 1.0, 0.0]).log_softmax(-1).tolist()
    reports = [token.logprobs for token in tokens]
    assert [report.logprob for report in reports if report] == pytest.approx([expected[i] for i in (2, 0, 3)])
    assert [report.rank for report in reports if report] == [3, 1, 4]
    assert all(report.top_token_ids == [0] for report in reports if report)


def test_a_bias_does_not_bring_back_what_is_masked() -> None:
    sampling = SamplingParams(temperature=1.0, logit_bias=((0, 100.0),))
    rows = [SamplingRow(sampling, None, 0, position, mask=pack({1, 2}, 4)) for position in range(50)]
    tokens = sample_tokens(OPS, torch.zeros(50, 4), rows, [None] * 50)

    assert {token.token_id for token in tokens} == {1, 2}


def test_an_empty_mask_and_bad_logits_fail_their_rows_alone() -> None:
    logits = torch.tensor([[3.0, 2.0], [math.nan, 1.0], [0.0, 1.0], [0.0, 1.0]])
    masks = [b"", pack({1}, 4), pack({0}, 4), None]
    rows = [SamplingRow(GREEDY, None, 0, 5, mask=mask) for mask in masks]

    tokens = sample_tokens(OPS, logits, rows, [None] * 4)
    assert [token.token_id for token in tokens] == [NO_TOKEN, NOT_FINITE, 0, 1]
