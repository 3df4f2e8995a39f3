"""The largest step: what it consists of, that it runs before there is a pool, and what its memory is taken for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch

from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig, SchedulerConfig
from inferd.errors import StartupError
from inferd.executor.build import load_model, rehearsal, rehearse, working_bytes
from inferd.executor.rehearsal import largest_plan, measure_step, num_blocks
from inferd.models.registry import check_checkpoint
from inferd.step import StepPlan

CUDA = torch.device("cuda", 1)


@pytest.mark.parametrize(
    ("limits", "lengths"),
    [
        (SchedulerConfig(max_num_batched_tokens=11, max_num_seqs=3), [4, 4, 3]),
        (SchedulerConfig(max_num_batched_tokens=4, max_num_seqs=9), [1, 1, 1, 1]),
        (SchedulerConfig(max_num_batched_tokens=900, max_num_seqs=2), [100, 100]),
    ],
)
def test_as_many_tokens_and_sequences_as_a_step_may_have(limits: SchedulerConfig, lengths: list[int]) -> None:
    plan = largest_plan(limits, 100, 3)
    assert [len(item.token_ids) for item in plan.items] == lengths
    assert all(item.choices == (0,) for item in plan.items)
    assert num_blocks(plan) == -(-lengths[0] // 3)


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
