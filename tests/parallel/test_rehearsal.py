"""The largest step: what it consists of, that it runs before there is a pool, and what its memory is taken for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch

from inferd.blocks.parameters import WHOLE
from inferd.checkpoint import open_checkpoint
from inferd.config import CacheConfig, EngineConfig, SchedulerConfig
from inferd.errors import StartupError
from inferd.executor import build
from inferd.executor.build import LoadedModel, load_model, rehearsal, rehearse, working_bytes
from inferd.executor.decode_graphs import GRAPH_BYTES
from inferd.executor.rehearsal import largest_plan, measure_step, num_blocks
from inferd.models.registry import check_checkpoint
from inferd.models.shard import ModelShard
from inferd.parallel.context import ParallelContext
from inferd.parallel.placement import Placement
from inferd.step import StepPlan

CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("limits", "lengths", "blocks"),
    [
        (SchedulerConfig(max_num_batched_tokens=11, max_num_seqs=3), [9, 1, 1], 3),
        (SchedulerConfig(max_num_batched_tokens=4, max_num_seqs=9), [1, 1, 1, 1], 1),
        (SchedulerConfig(max_num_batched_tokens=900, max_num_seqs=2), [100, 100], 34),
        (SchedulerConfig(max_num_batched_tokens=150, max_num_seqs=3), [100, 49, 1], 34),
    ],
)
def test_as_many_tokens_and_sequences_as_a_step_may_have(
    limits: SchedulerConfig, lengths: list[int], blocks: int
) -> None:
    """Those of one token are at the end of the longest context, where their attention works in the most memory."""
    plan = largest_plan(limits, 100, 3)
    assert [len(item.token_ids) for item in plan.items] == lengths
    assert [item.start for item in plan.items] == [0 if length > 1 else 99 for length in lengths]
    assert [len(new.block_ids) for new in plan.new] == [-(-(length if length > 1 else 100) // 3) for length in lengths]
    assert all(item.choices == (0,) for item in plan.items)
    assert num_blocks(plan) == blocks


@pytest.mark.parametrize(("rows", "context", "graphs"), [(1, 100, 1), (256, 8192, 46), (1024, 131_072, 140)])
def test_a_gpu_keeps_memory_for_the_graphs_that_follow(
    rows: int, context: int, graphs: int, monkeypatch: pytest.MonkeyPatch, engine_config: Callable[..., EngineConfig]
) -> None:
    """Arithmetic over the buckets, beside the largest step and what the graphs compute in. Not run on a GPU."""
    measured: list[StepPlan] = []

    def measure(device: torch.device, plan: StepPlan, execute: object) -> int:
        measured.append(plan)
        return 7000 if len(measured) == 1 else 300

    monkeypatch.setattr(build, "measure_step", measure)
    ops = SimpleNamespace(backends={"sample": "triton"})
    spec = SimpleNamespace(context_length=context, head=None, layers=())
    shard = ModelShard(range(0), WHOLE, is_first=True, is_last=True)
    model: Any = LoadedModel(spec, shard, None, ops, None, None, CUDA, ParallelContext(), "none", 0)  # type: ignore[arg-type]  # stand-ins
    config = msgspec.structs.replace(
        engine_config(Path("m")),
        cache=CacheConfig(),
        scheduler=SchedulerConfig(max_num_batched_tokens=8192, max_num_seqs=rows),
    )
    assert working_bytes(model, config) == 7000 + 300 + graphs * GRAPH_BYTES
    assert [(item.start, item.choices) for item in measured[1].items] == [(context - 1, ())] * rows
    ranks = replace(model, context=ParallelContext(Placement(0, 2, 1)))  # which run op by op
    measured.clear()
    assert working_bytes(ranks, config) == 7000


def test_a_model_without_a_head_draws_nothing() -> None:
    plan = largest_plan(SchedulerConfig(max_num_batched_tokens=11, max_num_seqs=3), 100, 3, has_head=False)
    assert [item.choices for item in plan.items] == [()] * 3


def test_the_estimate_of_a_cpu_is_more_than_the_largest_step_takes(
    tiny_model: Callable[[str], Path], engine_config: Callable[..., EngineConfig], tmp_path: Path
) -> None:
    config = engine_config(tiny_model("llama"))
    limits = SchedulerConfig(max_num_batched_tokens=256, max_num_seqs=64)
    config = msgspec.structs.replace(config, scheduler=limits)
    checkpoint = open_checkpoint(Path(config.model.path))
    spec = check_checkpoint(checkpoint)
    model = load_model(config, checkpoint, spec, torch.device("cpu"), lambda fraction: None)
    plan = rehearsal(model, config)
    assert plan.num_tokens == 256
    with torch.profiler.profile(profile_memory=True) as profile:
        result = rehearse(model, config, plan)
    assert len(result.results) == 64
    assert all(token.token_id >= 0 for each in result.results for token in each.samples)
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    held = [event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]"]
    pool = 2 * 3 * num_blocks(plan) * config.cache.block_size * 2 * 8 * 4
    assert 0.2 < (max(held) - held[0] - pool) / working_bytes(model, config) < 1.0


class Allocator:
    """torch.cuda's, as far as it is asked: 100 bytes are reserved before, 350 at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        answers = {"memory_reserved": 100, "max_memory_reserved": 350}
        for name in ("empty_cache", "reset_peak_memory_stats", "synchronize", *answers):
            monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: self._note(name, answers.get(name)))

    def _note(self, name: str, answer: int | None) -> int | None:
        self.calls.append(name)
        return answer


def test_an_accelerator_says_what_a_step_took(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch)
    plan = largest_plan(SchedulerConfig(), 100, 16)
    assert measure_step(CUDA, plan, lambda given: allocator.calls.append(f"step {given.step}")) == 250
    order = "empty_cache reset_peak_memory_stats memory_reserved step 0 synchronize max_memory_reserved empty_cache"
    assert " ".join(allocator.calls) == order


def test_a_step_too_large_for_an_accelerator_says_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(plan: StepPlan) -> None:
        raise torch.OutOfMemoryError

    Allocator(monkeypatch)
    plan = largest_plan(SchedulerConfig(max_num_batched_tokens=300, max_num_seqs=7), 1000, 16)
    with pytest.raises(StartupError, match="a step of 300 tokens and 7 sequences: lower --max-num-batched-tokens or"):
        measure_step(CUDA, plan, execute)
