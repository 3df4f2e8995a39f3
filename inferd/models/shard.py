"""Which part of a model one rank holds: a range of layers, and a share of each of them. Loads no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferd.blocks.parameters import WHOLE, Share
from inferd.errors import StartupError
from inferd.models.spec import ModelSpec
from inferd.parallel.placement import Placement


@dataclass(frozen=True, slots=True)
class ModelShard:
    """is_first: the rank's stage embeds. is_last: it has the final norm and the head."""

    layers: range
    share: Share
    is_first: bool
    is_last: bool


def whole_model(spec: ModelSpec) -> ModelShard:
    return ModelShard(range(spec.num_layers), WHOLE, True, True)


def shard_model(
    spec: ModelSpec, placement: Placement, inner_unit: int, costs: Sequence[int] | None = None
) -> ModelShard:
    """inner_unit: see Share. costs: of each layer, by which stages are balanced; those of layer_costs unless more is
    known.

    Raises StartupError, saying what would fit, when a rank would hold nothing.
    """
    layers = layer_ranges(costs or layer_costs(spec), placement.num_stages)[placement.stage]
    share = Share(placement.tensor_rank, placement.tensor_size, inner_unit)
    share.vocabulary(spec.vocab_size)
    for index in layers:
        list(spec.layer_parameters(index, share))
    return ModelShard(layers, share, placement.is_first_stage, placement.is_last_stage)


def layer_costs(spec: ModelSpec) -> list[int]:
    """Weights that a token may meet in each layer; the last one's include the head's. The embedding is a lookup."""
    costs = [sum(math.prod(each.shape) for each in spec.layer_parameters(i, WHOLE)) for i in range(spec.num_layers)]
    costs[-1] += spec.hidden_size * spec.vocab_size
    return costs


def layer_ranges(costs: Sequence[int], num_stages: int) -> list[range]:
    """Consecutive layers per stage such that the most expensive stage costs least, and the others differ little.

    Raises StartupError for more stages than layers.
    """
    count = len(costs)
    if num_stages > count:
        raise StartupError(
            f"{count} layers cannot be split over {num_stages} stages: --pipeline-parallel-size may be 1 to {count}"
        )
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    # best[end]: (largest stage, sum of squares) of the first `end` layers, and where its last stage begins.
    best: list[dict[int, tuple[tuple[int, int], int]]] = [{0: ((0, 0), 0)}]
    for stage in range(1, num_stages + 1):
        row: dict[int, tuple[tuple[int, int], int]] = {}
        for end in range(stage, count - (num_stages - stage) + 1):
            row[end] = min(
                ((max(worst, cost), squares + cost**2), begin)
                for begin, ((worst, squares), _) in best[-1].items()
                if begin < end
                for cost in (sums[end] - sums[begin],)
            )
        best.append(row)
    ranges, end = [], count
    for stage in range(num_stages, 0, -1):
        begin = best[stage][end][1]
        ranges.append(range(begin, end))
        end = begin
    return ranges[::-1]
