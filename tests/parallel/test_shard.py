"""Who holds what: the parts of all ranks are the whole, once; what cannot be is refused with what would fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from inferd.checkpoint import open_checkpoint
from inferd.errors import StartupError
from inferd.executor.build import STEP_CONTEXT, rank_shard
from inferd.models.registry import check_checkpoint
from inferd.models.shard import head_shards, layer_costs, layer_ranges, shard_model, split
from inferd.models.spec import DecoderSpec, RopeSpec
from inferd.parallel.placement import Placement
from inferd.testing.tiny_models import write_tiny_model

SPEC = DecoderSpec(
    architecture="LlamaForCausalLM",
    hidden_size=64,
    intermediate_size=192,
    num_layers=6,
    num_heads=9,
    num_kv_heads=3,
    head_dim=16,
    vocab_size=1000,
    norm_eps=1e-5,
    rope=RopeSpec(1e4, 16),
    windows=(0,) * 6,
    context_length=1000,
)


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
        shards = head_shards(heads, kv_heads, size)
        assert len(shards) == size
        assert [head for shard in shards for head in shard.q] == list(range(heads))
        for shard in shards:
            assert len(shard.q) % len(shard.kv) == 0
            local_group = len(shard.q) // len(shard.kv)
            for index, head in enumerate(shard.q):
                assert shard.kv[index // local_group] == head // group
    with pytest.raises(StartupError, match=f"--tensor-parallel-size may be 1 to {heads}"):
        head_shards(heads, kv_heads, heads + 1)


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
    assert isinstance(spec, DecoderSpec)
    stages = [rank_shard(checkpoint, spec, Placement(stage, 1, 2)).layers for stage in (0, 1)]
    sizes = [
        sum(tensor.nbytes for name, tensor in checkpoint.tensors.items() if f".layers.{layer}." in name)
        + STEP_CONTEXT * 2 * spec.kv_size * 2
        for layer in range(spec.num_layers)
    ]
    first, last = (sum(sizes[layer] for layer in layers) for layers in stages)
    last += checkpoint.tensors["model.embed_tokens.weight"].nbytes
    assert abs(first - last) <= max(sizes)
    assert len(stages[1]) < len(layer_ranges(layer_costs(spec), 2)[1])


def test_stages_are_balanced_by_what_weights_are_quantized_to(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 12, "hidden_size": 256, "intermediate_size": 512, "vocab_size": 8000}
    checkpoint = open_checkpoint(write_tiny_model("llama", tmp_path, **sizes))
    spec = check_checkpoint(checkpoint)
    assert isinstance(spec, DecoderSpec)
    q8, q4 = (len(rank_shard(checkpoint, spec, Placement(1, 1, 2), kind).layers) for kind in ("q8", "q4"))
    assert q8 > q4, "the head takes 8 bits at least"


@pytest.mark.parametrize(("tensor", "stages"), [(1, 1), (2, 3), (4, 2), (9, 6)])
def test_all_ranks_together_hold_the_model(tensor: int, stages: int) -> None:
    shards = [shard_model(SPEC, Placement(rank, tensor, stages), 32) for rank in range(tensor * stages)]
    for stage in range(stages):
        ranks = shards[stage * tensor : (stage + 1) * tensor]
        assert len({each.layers for each in ranks}) == 1
        assert [index for each in ranks for index in each.inner] == list(range(192))
        assert [index for each in ranks for index in each.vocab] == list(range(1000))
    assert [layer for each in shards[::tensor] for layer in each.layers] == list(range(6))
    assert [each.has_embedding for each in shards[::tensor]] == [True] + [False] * (stages - 1)
    assert [each.has_head for each in shards[::tensor]] == [False] * (stages - 1) + [True]


def test_quantized_blocks_stay_whole_where_there_are_enough() -> None:
    assert shard_model(SPEC, Placement(1, 4, 1), 32).inner == range(32, 96)
    assert shard_model(SPEC, Placement(1, 8, 1), 32).inner == range(24, 48)
