"""Which part of a model one rank holds. Arithmetic alone: loads no torch.

Parts need not be equal: every rank computes with its own sizes, and only their sums meet. So nothing is padded; what is
refused is a rank that would hold nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from inferd.errors import StartupError
from inferd.models.spec import DecoderSpec
from inferd.parallel.placement import Placement

VOCAB_UNIT = 16  # rows of the vocabulary are cut at multiples: whole noise counters (4), whole vector loads


@dataclass(frozen=True, slots=True)
class ModelShard:
    """Half-open ranges of what this rank holds of each dimension."""

    layers: range
    q_heads: range
    kv_heads: range
    inner: range  # of the MLP's intermediate size
    vocab: range
    has_embedding: bool
    has_head: bool


@dataclass(frozen=True, slots=True)
class HeadShard:
    """Query heads and the KV heads they look at; every rank has the same number of queries per KV head it holds."""

    q: range
    kv: range


def whole_model(spec: DecoderSpec) -> ModelShard:
    return shard_model(spec, Placement(), 1)


def shard_model(
    spec: DecoderSpec, placement: Placement, inner_unit: int, costs: Sequence[int] | None = None
) -> ModelShard:
    """inner_unit: the intermediate size is cut at its multiples where possible (quantized blocks stay whole).
    costs: of each layer, by which stages are balanced; those of layer_costs unless more is known.

    Raises StartupError, saying what would fit, when a rank would hold nothing.
    """
    size, rank = placement.tensor_size, placement.tensor_rank
    heads = head_shards(spec.num_heads, spec.num_kv_heads, size)[rank]
    if spec.intermediate_size // inner_unit < size:
        inner_unit = 1
    inner = split(spec.intermediate_size, size, inner_unit, "an intermediate size")[rank]
    vocab = split(spec.vocab_size, size, VOCAB_UNIT, "a vocabulary")[rank]
    layers = layer_ranges(costs or layer_costs(spec), placement.num_stages)[placement.stage]
    return ModelShard(layers, heads.q, heads.kv, inner, vocab, placement.is_first_stage, placement.is_last_stage)


def split(total: int, parts: int, unit: int, what: str) -> list[range]:
    """Consecutive ranges of multiples of `unit` that differ by one unit at most; the last takes what is no multiple."""
    units = -(-total // unit)
    if units < parts:
        raise StartupError(
            f"{what} of {total} cannot be split over {parts} ranks in units of {unit}: at most {units} fit"
        )
    cuts = [min(units * part // parts * unit, total) for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(cuts)]


def head_shards(num_heads: int, num_kv_heads: int, size: int) -> list[HeadShard]:
    """Whole groups (a KV head and its query heads) while there are enough; beyond that, several ranks hold the same KV
    head and share its query heads."""
    group = num_heads // num_kv_heads
    if size > num_heads:
        raise StartupError(
            f"{num_heads} attention heads cannot be split over {size} ranks: "
            f"--tensor-parallel-size may be 1 to {num_heads}"
        )
    if size <= num_kv_heads:
        kv_ranges = split(num_kv_heads, size, 1, "KV heads")
        return [HeadShard(range(kv.start * group, kv.stop * group), kv) for kv in kv_ranges]
    shards = []
    for head, ranks in enumerate(split(size, num_kv_heads, 1, "ranks")):
        for part in split(group, len(ranks), 1, f"the {group} query heads of a KV head"):
            shards.append(HeadShard(range(head * group + part.start, head * group + part.stop), range(head, head + 1)))
    return shards


def layer_costs(spec: DecoderSpec) -> list[int]:
    """Weights that a token meets in each layer; the last one's include the head's. The embedding is a lookup."""
    matrices = 3 if spec.is_gated else 2
    layer = spec.hidden_size * (2 * spec.q_size + 2 * spec.kv_size + matrices * spec.intermediate_size)
    costs = [layer] * spec.num_layers
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
