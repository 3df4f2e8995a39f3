"""The batched sampler against the one that goes row by row, and the packing that carries it to and from the device."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from inferd_kernels.ops import load_ops

from inferd.executor.transfer import Download, upload
from inferd.request import LogprobParams, SamplingParams
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.batched import draw_tokens
from inferd.sampling.history import TokenHistory
from inferd.sampling.sampler import sample_tokens
from inferd.step import NO_TOKEN, NOT_FINITE, SampledToken

OPS = load_ops("cpu", "reference")
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def batched(logits: torch.Tensor, rows: list[SamplingRow], logprobs: list[LogprobParams | None]) -> list[SampledToken]:
    download = Download(CPU)
    drawn = draw_tokens(OPS, logits, rows, logprobs, lambda arrays: upload(arrays, CPU), download)
    download.start()
    return drawn.read(download)


def random_row(rng: random.Random, vocab: int) -> SamplingRow:
    sampling = SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=rng.choice([0, 0, 5]),
        top_p=rng.choice([1.0, 1.0, 0.8]),
        min_p=rng.choice([0.0, 0.0, 0.02]),
        seed=rng.randrange(1 << 64),
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.25]),
        logit_bias=tuple((token, rng.uniform(-5, 5)) for token in rng.sample(range(vocab), rng.choice([0, 0, 3]))),
        allowed_token_ids=tuple(rng.sample(range(vocab), rng.choice([0, 0, 0, 6]))),
        bad_words=rng.choice([(), ((3,), (4, 5))]),
    )
    history = None
    if sampling.needs_history:
        history = TokenHistory([rng.randrange(vocab) for _ in range(rng.randint(1, 20))] + [4], rng.randint(0, 2))
    blocked = tuple(rng.sample(range(vocab), rng.choice([0, 0, 2])))
    mask = rng.choice([None, None, rng.randbytes(rng.choice([0, 2, vocab // 8 + 9]))])
    return SamplingRow(sampling, history, rng.randrange(4), rng.randrange(2**33), blocked, mask)


@pytest.mark.parametrize("vocab", [33, 120, 1000])
def test_tokens_and_log_probabilities_are_those_of_the_other_sampler(vocab: int) -> None:
    rng, seen = random.Random(vocab), set()
    for _ in range(25):
        rows = [random_row(rng, vocab) for _ in range(rng.randint(1, 9))]
        options = [rng.choice([None, None, LogprobParams(top_n=rng.choice([0, 3]), token_ids=(7, 30))]) for _ in rows]
        logits = torch.randn(len(rows), vocab, generator=torch.Generator().manual_seed(rng.randrange(999))) * 3
        if rng.random() < 0.2:
            logits[0, 5] = math.nan
        expected = sample_tokens(OPS, logits.clone(), rows, options)
        assert batched(logits.clone(), rows, options) == expected
        seen |= {min(token.token_id, 0) for token in expected}
    assert seen == {0, NOT_FINITE, NO_TOKEN}


def test_arrays_of_any_shape_arrive_in_one_aligned_buffer() -> None:
    arrays = [
        np.array([3], np.int64),
        np.zeros((0, 4), np.float32),
        np.arange(7, dtype=np.int32)[::2],
        np.array([[1.5, -2.0]], np.float32),
        np.array([2**64 - 1], np.uint64).view(np.int64),
    ]
    tensors = upload(arrays, CPU)
    for array, tensor in zip(arrays, tensors, strict=True):
        assert tensor.shape == array.shape
        assert tensor.numpy().tobytes() == array.tobytes()
    assert all(tensor.data_ptr() % 16 == tensors[0].data_ptr() % 16 for tensor in tensors if tensor.numel())


def test_tensors_come_back_in_their_shapes_and_types() -> None:
    download = Download(CPU)
    values = [torch.arange(6, dtype=torch.int32).view(2, 3), torch.zeros(0, 2), torch.tensor([1.5, -math.inf])]
    numbers = [download.add(value) for value in values]
    with pytest.raises(AssertionError, match="float64"):
        download.add(torch.zeros(1, dtype=torch.float64))
    download.start()
    for number, value in zip(numbers, values, strict=True):
        assert torch.equal(torch.from_numpy(download.read(number)), value)
