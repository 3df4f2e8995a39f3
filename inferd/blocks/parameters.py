"""What a block is made of, and which part of it one tensor-parallel rank holds. Arithmetic alone: loads no torch.

Parts need not be equal: every rank computes with its own sizes, and only the sums over the ranks meet. So nothing is
padded; a rank that would hold nothing is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from inferd.errors import StartupError

VOCAB_UNIT = 16  # the vocabulary is cut at multiples of this: whole noise counters (4), whole vector loads


@dataclass(frozen=True, slots=True)
class Share:
    """One rank of the `size` that hold a layer together. inner_unit: sizes between two matrices are cut at its
    multiples where possible, so that quantized blocks stay whole."""

    rank: int = 0
    size: int = 1
    inner_unit: int = 1

    def inner(self, total: int) -> range:
        """This rank's part of a size that lies between two matrices, such as the intermediate size of a
        feed-forward."""
        unit = self.inner_unit if total // self.inner_unit >= self.size else 1
        return split(total, self.size, unit, "an intermediate size")[self.rank]

    def vocabulary(self, total: int) -> range:
        return split(total, self.size, VOCAB_UNIT, "a vocabulary")[self.rank]

    def heads(self, num_heads: int, num_kv_heads: int) -> HeadShare:
        return head_shares(num_heads, num_kv_heads, self.size)[self.rank]


WHOLE = Share()


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of a block, by its name in the block ("q.weight", "sinks").

    shape    of the whole tensor: [out, in] of a matrix, [n] of a vector
    rows     the output rows that this rank holds; None: all
    columns  the input columns that this rank holds; None: all
    head_dim, rotary_dim: rows come in heads of head_dim, of which the first rotary_dim are stored with rotary pairs
             side by side (see RopeSpec) and change places when they are loaded; rotary_dim 0: as stored
    experts  the tensor exists once for each of so many experts; 0: once
    """

    name: str
    shape: tuple[int, ...]
    rows: range | None = None
    columns: range | None = None
    head_dim: int = 0
    rotary_dim: int = 0
    rotary_start: int = 0
    experts: int = 0

    @property
    def held_shape(self) -> tuple[int, ...]:
        """Of this rank's part."""
        held = (self.rows, self.columns)
        return tuple(size if part is None else len(part) for size, part in zip(self.shape, held, strict=False))


@dataclass(frozen=True, slots=True)
class HeadShare:
    """Query heads and the KV heads they look at; every rank has the same number of queries per KV head it holds."""

    q: range
    kv: range


def split(total: int, parts: int, unit: int, what: str) -> list[range]:
    """Consecutive ranges of multiples of `unit` that differ by one unit at most; the last takes what is no multiple.

    Raises StartupError when there are fewer units than parts.
    """
    units = -(-total // unit)
    if units < parts:
        raise StartupError(
            f"{what} of {total} cannot be split over {parts} ranks in units of {unit}: at most {units} fit"
        )
    cuts = [min(units * part // parts * unit, total) for part in range(parts + 1)]
    return [range(first, last) for first, last in pairwise(cuts)]


def head_shares(num_heads: int, num_kv_heads: int, size: int) -> list[HeadShare]:
    """Whole groups (a KV head and its query heads) while there are enough; beyond that, several ranks hold the same KV
    head and share its query heads. Raises StartupError for more ranks than query heads."""
    group = num_heads // num_kv_heads
    if size > num_heads:
        raise StartupError(
            f"{num_heads} attention heads cannot be split over {size} ranks: "
            f"--tensor-parallel-size may be 1 to {num_heads}"
        )
    if size <= num_kv_heads:
        kv_ranges = split(num_kv_heads, size, 1, "KV heads")
        return [HeadShare(range(kv.start * group, kv.stop * group), kv) for kv in kv_ranges]
    shares = []
    for head, ranks in enumerate(split(size, num_kv_heads, 1, "ranks")):
        for part in split(group, len(ranks), 1, f"the {group} query heads of a KV head"):
            shares.append(HeadShare(range(head * group + part.start, head * group + part.stop), range(head, head + 1)))
    return shares


def scaled(heads: range, head_dim: int) -> range:
    """The rows of `heads`, head_dim each."""
    return range(heads.start * head_dim, heads.stop * head_dim)
