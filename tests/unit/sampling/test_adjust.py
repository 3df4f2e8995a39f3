"""Penalties, bias and masks against plain Python."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from inferd.request import SamplingParams
from inferd.sampling.adjust import SamplingRow, adjust, completed_bad_words
from inferd.sampling.history import TokenHistory

VOCAB = 50


def random_case(seed: int) -> tuple[list[float], list[int], int]:
    """Logits, tokens, and how many of the tokens are output."""
    rng = random.Random(seed)
    tokens = [rng.randrange(VOCAB) for _ in range(rng.randrange(1, 60))]
    return [rng.uniform(-4, 4) for _ in range(VOCAB)], tokens, rng.randrange(len(tokens) + 1)


def apply(logits: list[float], sampling: SamplingParams, history: TokenHistory | None, **options: Any) -> list[float]:
    tensor = torch.tensor(logits)
    adjust(tensor, SamplingRow(sampling, history, 0, 9, **options))
    return tensor.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_penalties(seed: int) -> None:
    logits, tokens, outputs = random_case(seed)
    sampling = SamplingParams(presence_penalty=0.7, frequency_penalty=-0.3, repetition_penalty=1.4)
    expected = list(logits)
    counts = Counter(tokens[len(tokens) - outputs :])
    for token in set(tokens):
        expected[token] = expected[token] / 1.4 if expected[token] > 0 else expected[token] * 1.4
        expected[token] -= -0.3 * counts[token] + 0.7 * (counts[token] > 0)
    assert apply(logits, sampling, TokenHistory(tokens, outputs)) == pytest.approx(expected, abs=1e-5)


def test_history_grows_like_one_given_whole() -> None:
    _, tokens, _ = random_case(1)
    whole, grown = TokenHistory(tokens, len(tokens) - 3), TokenHistory(tokens[:3], 0)
    for token in tokens[3:]:
        grown.extend_output([token])
    assert dict(zip(whole.token_ids.tolist(), whole.output_counts.tolist(), strict=True)) == dict(
        zip(grown.token_ids.tolist(), grown.output_counts.tolist(), strict=True)
    )
    assert grown.num_tokens == len(tokens)


def test_bias_is_added_and_allowed_tokens_are_the_only_ones() -> None:
    logits, _, _ = random_case(2)
    sampling = SamplingParams(logit_bias=((3, 5.0), (7, -100.0)), allowed_token_ids=(3, 7, 11))
    expected = [-math.inf] * VOCAB
    expected[3], expected[7], expected[11] = logits[3] + 5, logits[7] - 100, logits[11]
    assert apply(logits, sampling, None) == pytest.approx(expected, abs=1e-5)


def test_blocked_tokens_go_whatever_the_bias() -> None:
    logits, _, _ = random_case(3)
    expected = list(logits)
    expected[2] = expected[4] = -math.inf
    sampling = SamplingParams(logit_bias=((2, 100.0),))
    assert apply(logits, sampling, None, blocked_token_ids=(2, 4)) == pytest.approx(expected, abs=1e-5)


def test_bad_words_are_cut_at_their_last_token() -> None:
    words = ((5,), (1, 2), (3, 1, 2), (9, 9, 4))
    assert completed_bad_words(words, TokenHistory([3, 1], 0)) == [5, 2, 2]
    assert completed_bad_words(words, TokenHistory([1, 9, 9], 1)) == [5, 4]
    assert completed_bad_words(words, TokenHistory([9], 0)) == [5]


def test_rows_that_ask_for_nothing_are_not_touched() -> None:
    assert not SamplingRow(SamplingParams(temperature=0.5, top_k=3), None, 0, 4).adjusts
    assert SamplingRow(SamplingParams(bad_words=((1,),)), TokenHistory([1], 0), 0, 4).adjusts
