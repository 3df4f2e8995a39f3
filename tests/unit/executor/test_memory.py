"""KV pool arithmetic: what is stated wins, what is not follows from memory, a pool too small is said."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from inferd_kernels import host

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.caches import PagedNeed
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import rms
from inferd.blocks.rope import RopeSpec
from inferd.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from inferd.errors import StartupError
from inferd.executor import memory
from inferd.executor.kv_plan import KVPlan, KVRoom, block_bytes, requested_context
from inferd.executor.kv_plan import plan_kv as plan_ranks
from inferd.executor.memory import cache_budget
from inferd.models.spec import HeadSpec, ModelSpec


def spec_of(num_layers: int, intermediate_size: int, heads: int, kv_heads: int) -> ModelSpec:
    """A llama-like model of hidden size 64, head size 16 and 1000 tokens."""
    norm = rms(1e-5)
    mixer = AttentionSpec(heads, kv_heads, 16, 0.25, RopeSpec(1e4, 16))
    layer = LayerSpec(mixer, FeedForwardSpec(intermediate_size, "silu"), mixer_norm=norm, feed_forward_norm=norm)
    return ModelSpec("LlamaForCausalLM", 64, 1000, 1000, (layer,) * num_layers, norm, HeadSpec(is_tied=False))


SPEC = spec_of(3, 128, 4, 2)
BLOCK = 2 * 3 * 16 * 32 * 4  # K and V, layers, tokens, KV heads x dim, float32


def config(max_model_len: int | None = None, max_num_seqs: int = 4, **cache: int) -> EngineConfig:
    return EngineConfig(
        model=ModelConfig(source="m", path="m", max_model_len=max_model_len),
        cache=CacheConfig(**cache),  # type: ignore[arg-type]
        scheduler=SchedulerConfig(max_num_seqs=max_num_seqs),
    )


def plan_kv(settings: EngineConfig, budget: int) -> KVPlan:
    return plan_ranks(SPEC, settings, [KVRoom(BLOCK, budget)])


def test_every_rank_gets_as_many_blocks_as_the_poorest_has_room_for() -> None:
    rooms = [KVRoom(BLOCK, 90 * BLOCK), KVRoom(2 * BLOCK, 100 * BLOCK), KVRoom(BLOCK, 80 * BLOCK)]
    assert plan_ranks(SPEC, config(max_model_len=100), rooms) == KVPlan(28, 16, 4 * BLOCK, 100)
    assert plan_ranks(SPEC, config(max_model_len=100, max_num_seqs=50), rooms).num_blocks == 50
    assert plan_ranks(SPEC, config(max_model_len=100, memory_bytes=30 * BLOCK), rooms).num_blocks == 15


def test_block_bytes() -> None:
    needs = [PagedNeed(kv_heads=4, head_dim=8), None] * 3
    assert block_bytes(needs, 16, 4) == BLOCK
    assert block_bytes(needs, 16, 1) == BLOCK // 4 + 2 * 3 * 16 * 4 * 4  # and a scale per token and head


def test_enough_memory_gives_every_sequence_a_full_context() -> None:
    plan = plan_kv(config(), 10**9)
    assert (plan.num_blocks, plan.max_context) == (4 * 63, 1000)
    assert plan.total_bytes == 4 * 63 * BLOCK


def test_less_memory_gives_what_fits() -> None:
    plan = plan_kv(config(), 100 * BLOCK + 5)
    assert (plan.num_blocks, plan.max_context) == (100, 1000)


def test_a_stated_size_wins_over_memory() -> None:
    assert plan_kv(config(num_blocks=70), 0).num_blocks == 70
    assert plan_kv(config(memory_bytes=65 * BLOCK), 0).num_blocks == 65
    assert plan_kv(config(num_blocks=70, memory_bytes=BLOCK), 0).num_blocks == 70


def test_a_small_pool_lowers_the_context_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        plan = plan_kv(config(num_blocks=10), 0)
    assert plan.max_context == 160
    assert "context lowered from 1000 to 160 tokens" in caplog.text


def test_a_small_pool_refuses_a_context_that_was_asked_for() -> None:
    with pytest.raises(StartupError, match=r"max_model_len is 500, but the KV cache holds 160 tokens \(10 blocks\)"):
        plan_kv(config(max_model_len=500, num_blocks=10), 0)
    assert plan_kv(config(max_model_len=160, num_blocks=10), 0).max_context == 160


@pytest.mark.parametrize("budget", [BLOCK - 1, -5])
def test_no_block_at_all_is_refused(budget: int) -> None:
    with pytest.raises(StartupError, match="no KV block fits"):
        plan_kv(config(), budget)


@pytest.mark.parametrize("length", [0, -1, 1001])
def test_a_context_outside_the_models_is_refused(length: int) -> None:
    with pytest.raises(StartupError, match=f"max_model_len is {length}; the model's context is 1 to 1000 tokens"):
        requested_context(SPEC, length)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "meminfo").write_text("MemTotal:  9999 kB\nMemAvailable:    1000000 kB\n")
    monkeypatch.setattr(host, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    return tmp_path


def test_the_cpu_budget_is_a_quarter_of_it_less_the_step(machine: Path) -> None:
    step = memory.step_bytes(SPEC, 512, 4, 4)
    assert 0 < step < 10_000_000
    assert cache_budget(CacheConfig(), torch.device("cpu"), step, 10**9) == 256_000_000 - step
    assert cache_budget(CacheConfig(), torch.device("cpu"), step, 10**9, num_neighbours=4) == 64_000_000 - step


@pytest.mark.parametrize(
    ("context", "ranks", "expected"),
    [(10_000, 1, 1 << 30), (3 << 30, 1, 3 << 30), (9 << 30, 1, 4 << 30), (10_000, 4, 1 << 28), (3 << 29, 2, 3 << 29)],
)
def test_a_cpu_pool_is_a_gibibyte_or_one_context(context: int, ranks: int, expected: int, machine: Path) -> None:
    """A machine with plenty of memory goes on beside us."""
    (machine / "meminfo").write_text("MemTotal:  99999999 kB\nMemAvailable:    64000000 kB\n")
    assert cache_budget(CacheConfig(), torch.device("cpu"), 10**8, context, ranks) == expected


def test_the_budget_of_an_accelerator_is_its_share_less_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (70_000, 100_000))
    cache = CacheConfig(memory_utilization=0.8)
    assert cache_budget(cache, torch.device("cuda", 1), 15_000, 10**9, num_neighbours=4) == 80_000 - 30_000 - 15_000
