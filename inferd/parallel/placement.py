"""Placement: which of the ranks of a model one worker is. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Stages of tensor_size ranks each, one after the other: rank = stage * tensor_size + tensor_rank."""

    rank: int = 0
    tensor_size: int = 1
    num_stages: int = 1

    @property
    def world_size(self) -> int:
        return self.tensor_size * self.num_stages

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor_size

    @property
    def stage(self) -> int:
        return self.rank // self.tensor_size

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.num_stages - 1

    @property
    def answers(self) -> bool:
        """Whether this rank reports the results of a step."""
        return self.is_last_stage and self.tensor_rank == 0


def answering_rank(tensor_size: int, num_stages: int) -> int:
    return tensor_size * (num_stages - 1)
