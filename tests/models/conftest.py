"""Tiny random checkpoints, and a driver that runs an executor step by step the way a scheduler would."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from inferd_kernels.ops import load_ops
from transformers import LlamaConfig, LlamaForCausalLM

from inferd.blocks.parameters import WHOLE
from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, DeviceConfig, EngineConfig, ModelConfig
from inferd.executor.base import Executor
from inferd.executor.build import allocate_caches
from inferd.executor.factory import create_executor
from inferd.models.loader import Loader
from inferd.models.model import Model
from inferd.models.registry import check_checkpoint
from inferd.request import LogprobParams, SamplingParams
from inferd.step import NewSequence, PlanItem, SampledToken, StepPlan, TokenLogprobs

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Run:
    """What one sequence is asked for, and what came of it."""

    prompt: list[int]
    sampling: SamplingParams = GREEDY
    max_tokens: int = 8
    choice: int = 0
    logprobs: LogprobParams | None = None
    prompt_logprobs: LogprobParams | None = None
    min_tokens: int = 0
    blocked: tuple[int, ...] = ()
    samples: list[SampledToken] = field(default_factory=list)
    prompt_results: list[TokenLogprobs] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [sample.token_id for sample in self.samples]


class Driver:
    """Runs sequences to their max_tokens, all in each step, prompts in chunks; blocks come in random order."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._free = list(range(executor.info.num_blocks))
        random.Random(7).shuffle(self._free)
        self._next_id = 0
        self._step = 0

    def run(self, runs: Sequence[Run], chunk: int = 10**9) -> list[list[int]]:
        ids = {run_id: run for run_id, run in enumerate(runs, self._next_id)}
        self._next_id += len(runs)
        tables: dict[int, list[int]] = {run_id: [] for run_id in ids}
        done = dict.fromkeys(ids, 0)
        new = [self._announce(run_id, run) for run_id, run in ids.items()]
        while unfinished := {run_id: run for run_id, run in ids.items() if len(run.samples) < run.max_tokens}:
            items = [self._item(run_id, run, done, tables, chunk) for run_id, run in unfinished.items()]
            self._step += 1
            result = self.executor.execute(StepPlan(self._step, items, new))
            new = []
            for answer in result.results:
                ids[answer.seq_id].samples += answer.samples
                ids[answer.seq_id].prompt_results += answer.prompt_logprobs
        self._step += 1
        self.executor.execute(StepPlan(self._step, [], dropped=list(ids)))
        for table in tables.values():
            self._free += table
        return [run.tokens for run in runs]

    def _announce(self, run_id: int, run: Run) -> NewSequence:
        history = list(run.prompt) if run.sampling.needs_history else []
        return NewSequence(
            run_id, [], run.sampling, run.logprobs, run.prompt_logprobs, history, 0, run.min_tokens, run.blocked
        )

    def _item(self, run_id: int, run: Run, done: dict[int, int], tables: dict[int, list[int]], chunk: int) -> PlanItem:
        known = run.prompt + run.tokens
        start = done[run_id]
        tokens = known[start : start + chunk]
        done[run_id] = end = start + len(tokens)
        table = tables[run_id]
        info = self.executor.info
        rows = -(-end // info.block_size)
        added = [self._free.pop() for _ in range(rows * len(info.windows) - len(table))]
        table += added
        return PlanItem(run_id, start, tokens, added, (run.choice,) if end == len(known) else ())


def engine_config(path: Path, num_blocks: int = 256) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source=str(path), path=str(path)),
        cache=CacheConfig(num_blocks=num_blocks),
        device=DeviceConfig(device="cpu", kernel_backend="reference", threads=torch.get_num_threads()),
    )


@pytest.fixture(scope="session")
def make_driver() -> Callable[[Path], Driver]:
    return lambda path: Driver(create_executor(engine_config(path), lambda phase, fraction: None))


@pytest.fixture(scope="session")
def load_decoder() -> Callable[[Path], Model]:
    """The decoder of a checkpoint in float32 with 64 KV blocks of 16."""

    def load(path: Path) -> Model:
        checkpoint = open_checkpoint(path)
        spec = check_checkpoint(checkpoint)
        ops, device = load_ops("cpu", "reference"), torch.device("cpu")
        weights = Loader(checkpoint, spec, ops, torch.float32, device, lambda fraction: None).load(spec.context_length)
        needs = [layer.mixer.cache_need(WHOLE) for layer in spec.layers]
        caches = allocate_caches(needs, (64, 16), torch.float32, device, ops)
        return Model(spec, weights, caches, ops, torch.float32)

    return load


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random layers, 120 tokens, context 256, logits spread enough that tokens differ."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=120,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    path = tmp_path_factory.mktemp("tiny-llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def run_type() -> type[Run]:
    return Run
