"""Which layers share a cache group, and what that saves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.caches import (
    MAX_GROUPS,
    LatentNeed,
    PagedNeed,
    Place,
    block_needs,
    group_windows,
    place_layers,
)
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import rms
from inferd.blocks.rope import RopeSpec
from inferd.config import CacheConfig, EngineConfig, ModelConfig, SchedulerConfig
from inferd.executor.kv_plan import KVRoom, block_bytes, plan_kv, planned_groups
from inferd.models.spec import HeadSpec, ModelSpec

CONTEXT, WINDOW = 32 * 1024, 1024
FULL_NEED, WINDOW_NEED = PagedNeed(4, 8), PagedNeed(4, 8, WINDOW)


def gemma_like(window: int) -> ModelSpec:
    """Thirty layers, five of six with a window (0: none)."""
    norm = rms(1e-5)
    mixer = AttentionSpec(8, 4, 128, 0.25, RopeSpec(1e4, 128))
    whole = LayerSpec(mixer, FeedForwardSpec(512, "gelu"), mixer_norm=norm, feed_forward_norm=norm)
    windowed = replace(whole, mixer=replace(mixer, window=window))
    return ModelSpec("Gemma", 64, 1000, CONTEXT, ((windowed,) * 5 + (whole,)) * 5, norm, HeadSpec(is_tied=True))


def context_bytes(spec: ModelSpec) -> int:
    """The memory of one sequence of CONTEXT tokens: plan_kv's pool for one."""
    config = EngineConfig(
        model=ModelConfig(source="m", path="m"), cache=CacheConfig(), scheduler=SchedulerConfig(max_num_seqs=1)
    )
    needs = [PagedNeed(4, 128, layer.mixer.window) for layer in spec.layers if isinstance(layer.mixer, AttentionSpec)]
    size = block_bytes(block_needs(needs, planned_groups(spec, config).windows), 16, 2)
    plan = plan_kv(spec, config, [KVRoom(size, 1 << 50)])
    assert plan.max_context == CONTEXT
    return plan.total_bytes


def test_a_long_context_of_a_model_with_windows_takes_a_quarter_at_most() -> None:
    uniform = CONTEXT * 30 * 2 * 4 * 128 * 2  # tokens, layers, K and V, heads x dim, bytes
    assert context_bytes(gemma_like(0)) == uniform
    assert context_bytes(gemma_like(WINDOW)) <= 0.25 * uniform


@pytest.mark.parametrize(
    ("needs", "windows"),
    [
        ([FULL_NEED] * 3, (0,)),
        ([WINDOW_NEED] * 3, (WINDOW,)),
        ([PagedNeed(4, 8, CONTEXT)] * 3, (0,)),  # it never passes anything
        ([WINDOW_NEED] * 5 + [FULL_NEED], (0,) + (WINDOW,) * 5),
        (([WINDOW_NEED] * 5 + [FULL_NEED]) * 4 + [WINDOW_NEED] * 2, (0,) + (WINDOW,) * 6),  # 22 : 4
        ([FULL_NEED] * 3 + [WINDOW_NEED] * 3 + [PagedNeed(4, 8, 9)] * 3, (0, 9, WINDOW)),
        ([FULL_NEED, PagedNeed(4, 16, WINDOW)], (0,)),  # of unlike size
        ([LatentNeed(20)] * 2, (0,)),
        ([None] * 2, (0,)),
    ],
)
def test_windows_of_groups(needs: list[PagedNeed], windows: tuple[int, ...]) -> None:
    assert group_windows(needs, CONTEXT) == windows


def test_there_are_not_many_groups() -> None:
    needs = [WINDOW_NEED] * 59 + [FULL_NEED]
    windows = group_windows(needs, CONTEXT)
    assert windows == (0,) + (WINDOW,) * (MAX_GROUPS - 1)
    assert len(block_needs(needs, windows)) == 9  # layers of a block: what a long context takes per row, of 60


def test_layers_of_a_window_are_dealt_out() -> None:
    windows = (0, WINDOW, WINDOW)
    needs = [WINDOW_NEED, FULL_NEED, WINDOW_NEED, WINDOW_NEED]
    assert place_layers(needs, windows) == [Place(1, 0), Place(0, 0), Place(2, 0), Place(1, 1)]
    assert len(block_needs(needs, windows)) == 2
    assert place_layers([LatentNeed(20)] * 2, (0,)) == [Place(0, 0), Place(0, 1)]
