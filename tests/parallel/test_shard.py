"""Who holds what: the parts of all ranks are the whole, once; what cannot be is refused with what would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.feed_forward import FeedForwardSpec
from inferd.blocks.layer import LayerSpec
from inferd.blocks.norm import rms
from inferd.blocks.parameters import WHOLE, head_shares, split
from inferd.blocks.rope import RopeSpec
from inferd.checkpoint import open_checkpoint
from inferd.errors import StartupError
from inferd.executor.build import STEP_CONTEXT, rank_shard
from inferd.models.registry import check_checkpoint
from inferd.models.shard import layer_costs, layer_ranges, shard_model
from inferd.models.spec import HeadSpec, ModelSpec
from inferd.parallel.placement import Placement
from inferd.testing.tiny_models import write_tiny_model


def spec_of(num_layers: int, intermediate_size: int, heads: int, kv_heads: int) -> ModelSpec:
    """A llama-like model of hidden size 64, head size 16 and 1000 tokens."""
    norm = rms(1e-5)
    mixer = AttentionSpec(heads, kv_heads, 16, 0.25, RopeSpec(1e4, 16))
    layer = LayerSpec(mixer, FeedForwardSpec(intermediate_size, "silu"), mixer_norm=norm, feed_forward_norm=norm)
    return ModelSpec("LlamaForCausalLM", 64, 1000, 1000, (layer,) * num_layers, norm, HeadSpec(is_tied=False))


SPEC = spec_of(6, 192, 9, 3)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize(("total", "unit"), [(50257, 16), (1536, 256), (100, 1)])
def test_a_split_covers_everything_once_in_units(total: int, unit: int, parts: int) -> None:
    if -(-total // unit) < parts:
        with pytest.raises(StartupError, match=f"of {total} cannot be split over {parts} ranks"):
            split(total, parts, unit, "it")
        return
    ranges = split(total, parts, unit, "it")
    assert [index for each in ranges for index in each] == list(range(total))
    assert all(each.start % unit == 0 for each in ranges)
    assert max(map(len, ranges)) - min(map(len, ranges)) <= unit


@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (8, 8), (32, 8), (12, 1), (40, 40), (14, 2)])
def test_query_heads_are_held_once_beside_their_kv_head(heads: int, kv_heads: int) -> None:
    group = heads // kv_heads
    for size in range(1, heads + 1):
        shards = head_shares(heads, kv_heads, size)
        assert len(shards) == size
        assert [head for shard in shards for head in shard.q] == list(range(heads))
        for shard in shards:
            assert len(shard.q) % len(shard.kv) == 0
            local_group = len(shard.q) // len(shard.kv)
            for index, head in enumerate(shard.q):
                assert shard.kv[index // local_group] == head // group
    with pytest.raises(StartupError, match=f"--tensor-parallel-size may be 1 to {heads}"):
        head_shares(heads, kv_heads, heads + 1)


def test_stages_cost_the_same_as_far_as_layers_allow() -> None:
    assert layer_ranges([1] * 8, 4) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert layer_ranges([1, 1, 1, 1, 1, 4], 2) == [range(4), range(4, 6)]
    assert layer_ranges([5, 1, 1, 1], 3) == [range(1), range(1, 2), range(2, 4)]
    with pytest.raises(StartupError, match="--pipeline-parallel-size may be 1 to 3"):
        layer_ranges([1, 1, 1], 4)


def test_a_large_vocabulary_takes_layers_from_the_last_stage() -> None:
    balanced = layer_ranges(layer_costs(SPEC), 2)
    heavy = layer_ranges(layer_costs(replace(SPEC, vocab_size=4000)), 2)
    assert len(heavy[1]) < len(balanced[1]) <= 3


def test_stages_read_about_the_same_number_of_bytes(demo_gguf: Path) -> None:
    """The demo model's head takes 8 bits a weight, its layers 5 or so, and keys and values of some context."""
    checkpoint = open_checkpoint(demo_gguf)
    spec = check_checkpoint(checkpoint)
    stages = [rank_shard(checkpoint, spec, Placement(stage, 1, 2)).layers for stage in (0, 1)]
    sizes = [
        sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if name.startswith(f"blk.{layer}."))
        + spec.layers[layer].mixer.cache_need(WHOLE).block_bytes(STEP_CONTEXT, 2)
        for layer in range(spec.num_layers)
    ]
    first, last = (sum(sizes[layer] for layer in layers) for layers in stages)
    last += checkpoint.tensors["token_embd.weight"].nbytes
    assert abs(first - last) <= max(sizes)
    assert len(stages[1]) < len(layer_ranges(layer_costs(spec), 2)[1])


def test_stages_are_balanced_by_what_weights_are_quantized_to(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 8000}
    checkpoint = open_checkpoint(write_tiny_model("llama", tmp_path, **sizes))
    spec = check_checkpoint(checkpoint)
    q8, q4 = (len(rank_shard(checkpoint, spec, Placement(1, 1, 2), kind).layers) for kind in ("q8", "q4"))
    assert q8 > q4, "the head takes 8 bits at least"


@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (2, 3), (4, 2), (9, 6)])
def test_all_ranks_together_hold_the_model(tensor: int, stages: int) -> None:
    shards = [shard_model(SPEC, Placement(rank, tensor, stages), 32) for rank in range(tensor * stages)]
    for stage in range(stages):
        ranks = shards[stage * tensor : (stage + 1) * tensor]
        assert len({each.layers for each in ranks}) == 1
        assert [index for each in ranks for index in each.share.inner(192)] == list(range(192))
        assert [index for each in ranks for index in each.share.vocabulary(1000)] == list(range(1000))
    assert [layer for each in shards[::tensor] for layer in each.layers] == list(range(6))
    assert [each.is_first for each in shards[::tensor]] == [True] + [False] * (stages - 1)
    assert [each.is_last for each in shards[::tensor]] == [False] * (stages - 1) + [True]


def test_quantized_blocks_stay_whole_where_there_are_enough() -> None:
    assert shard_model(SPEC, Placement(1, 4, 1), 32).share.inner(192) == range(32, 96)
    assert shard_model(SPEC, Placement(1, 8, 1), 32).share.inner(192) == range(24, 48)
