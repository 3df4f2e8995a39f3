"""Byte ranges of tensors: inside the file, none overlapping another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from inferd.errors import StartupError


class Extent(NamedTuple):
    begin: int
    end: int
    name: str


def check_extents(extents: Iterable[Extent], size: int, what: str) -> None:
    """StartupError when an extent leaves [0, size) or overlaps another."""
    position, previous = 0, ""
    for begin, end, name in sorted(extents):
        if end > size:
            raise StartupError(
                f"{what}: tensor {name!r} ends at byte {end}, the data ends at {size}: the file is truncated or corrupt"
            )
        if begin < position and end > begin:
            raise StartupError(f"{what}: tensors {previous!r} and {name!r} overlap")
        if end > position:
            position, previous = end, name
