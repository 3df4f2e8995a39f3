"""Tiny checkpoints, a workload that reaches every part of the scheduler, and what one process makes of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig, ParallelConfig, SchedulerConfig
from inferd.constraint.grammar import grammar_of
from inferd.constraint.matcher import MatcherFactory
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.executor.base import Executor
from inferd.messages import Vocabulary
from inferd.request import (
    Constraint,
    ConstraintKind,
    ConstraintSpec,
    LogprobParams,
    Request,
    SamplingParams,
    StopParams,
)
from inferd.testing.requests import Collected, Driver, make_request
from inferd.testing.tiny_models import VOCAB, write_tiny_model

ROOT = Path(__file__).resolve().parents[2]
Answers = dict[tuple[int, int], Collected]
SCHEMA = '{"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a", "b"]}'


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ranks share two cores; several threads each would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def rank_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find our packages, and take one thread each."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint; each is written once."""
    written: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in written:
            written[name] = write_tiny_model(name, tmp_path_factory.mktemp(name))
        return written[name]

    return folder


@pytest.fixture(scope="session")
def engine_config() -> Callable[..., EngineConfig]:
    """Few blocks and small steps: prompts come in chunks, sequences are preempted."""

    def config(path: Path, tensor: int = 1, stages: int = 1, **changes: Any) -> EngineConfig:
        return EngineConfig(
            model=ModelConfig(source=str(path), path=str(path)),
            cache=CacheConfig(num_blocks=40, block_size=8),
            scheduler=SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=24),
            device=DeviceConfig(device="cpu", kernel_backend="reference", threads=1),
            parallel=ParallelConfig(tensor_parallel_size=tensor, pipeline_parallel_size=stages, **changes),
        )

    return config


def workload(count: int, tokens: int) -> list[Request]:
    """`count` prompts that share beginnings: greedy, seeded, filtered, penalized, constrained, with choices, with
    logprobs."""
    greedy = SamplingParams(temperature=0.0)
    kinds: list[dict[str, Any]] = [
        {},
        {"logprobs": LogprobParams(top_n=4, token_ids=(3, 150))},
        {"sampling": SamplingParams(temperature=0.9, seed=17), "num_choices": 2},
        {"sampling": SamplingParams(temperature=1.2, seed=2**63 + 5, top_k=20, top_p=0.8, min_p=0.02)},
        {"sampling": SamplingParams(temperature=0.0, repetition_penalty=1.3, frequency_penalty=0.4, bad_words=((7,),))},
        {"prompt_logprobs": LogprobParams(top_n=2), "num_choices": 3, "logprobs": LogprobParams()},
        {"sampling": SamplingParams(temperature=0.8, seed=3, allowed_token_ids=(5, 60, 99, 140, 202))},
        {"sampling": SamplingParams(temperature=0.0, logit_bias=((11, 4.0), (200, 5.5), (90, -100.0)))},
        {"constraint": constraint(ConstraintKind.REGEX, "[a-f0-9]{2,9}(, [a-f0-9]{2,9})*")},
        {
            "constraint": constraint(ConstraintKind.JSON_SCHEMA, SCHEMA),
            "sampling": SamplingParams(temperature=0.7, seed=11),
            "num_choices": 2,
        },
    ]
    shared = [(5 * position + 3) % VOCAB for position in range(26)]
    requests = []
    for key in range(count):
        fields = dict(kinds[key % len(kinds)])
        prompt = [*(shared if key % 3 else shared[::-1]), *((key * 31 + index * index) % VOCAB for index in range(key))]
        stop = StopParams(max_tokens=tokens, min_tokens=2, eos_token_ids=(2,) if key % 5 == 4 else ())
        requests.append(make_request(key, prompt, stop=stop, **({"sampling": greedy} | fields)))
    return requests


@functools.cache
def matcher_factory() -> MatcherFactory:
    """Constraints see the first tokens as bytes; no text has the others, whatever the model."""
    vocabulary = Vocabulary([bytes([token]) for token in range(VOCAB)], [2], [])
    return MatcherFactory(MatchVocabulary(vocabulary, VOCAB))


def constraint(kind: ConstraintKind, source: str) -> Constraint:
    return Constraint(grammar_of(ConstraintSpec(kind, source), matcher_factory().vocabulary))


def answer(executor: Executor, config: EngineConfig, count: int, tokens: int) -> tuple[Answers, Driver]:
    drive = Driver(executor=executor, config=config.scheduler, cache=config.cache)
    for request in workload(count, tokens):
        drive.scheduler.add(request, None if request.constraint is None else matcher_factory().for_request(request))
    drive.run()
    return dict(drive.outputs), drive


@pytest.fixture(scope="session")
def ask() -> Callable[[Executor, EngineConfig, int, int], tuple[Answers, Driver]]:
    return answer


@pytest.fixture(scope="session")
def same() -> Callable[[Answers, Answers], None]:
    """Tokens and endings are equal, log probabilities within 1e-4."""

    def compare(ours: Answers, expected: Answers) -> None:
        assert ours.keys() == expected.keys()
        for key, theirs in expected.items():
            assert (ours[key].token_ids, ours[key].finish) == (theirs.token_ids, theirs.finish), key
            assert ours[key].error is None
            reports = [(ours[key].logprobs, theirs.logprobs)]
            if theirs.prompt is not None:
                assert ours[key].prompt is not None
                reports.append((ours[key].prompt.prompt_logprobs, theirs.prompt.prompt_logprobs))
            for own, other in reports:
                assert len(own) == len(other)
                for left, right in zip(own, other, strict=True):
                    assert (left.rank, left.top_token_ids) == (right.rank, right.top_token_ids)
                    assert left.logprob == pytest.approx(right.logprob, abs=1e-4)
                    assert left.top_logprobs == pytest.approx(right.top_logprobs, abs=1e-4)

    return compare
