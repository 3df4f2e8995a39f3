"""The seam between the planes: what the engine core knows of an executor. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from inferd.cache_groups import FULL
from inferd.step import RankTimings, StepPlan, StepResult

Progress: TypeAlias = Callable[[str, float], None]  # phase name, fraction 0..1


class ExecutorDead(Exception):
    """A worker died or hung: no later step can run on this executor."""


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """What was built. max_context_tokens is the model's (or --max-model-len); num_blocks what the KV pool holds."""

    architecture: str
    dtype: str
    quantization: str
    vocab_size: int
    max_context_tokens: int
    block_size: int
    num_blocks: int
    weight_bytes: int
    kv_bytes: int
    backends: Mapping[str, str]
    pipeline_depth: int = 1  # plans worth having in flight
    looks_ahead: bool = False  # one more, made before the tokens of the last are known: see step.PENDING
    is_pageable: bool = False  # KV memory is the machine's: unused pages can be given back
    windows: tuple[int, ...] = FULL  # of the cache groups, in tokens
    whole_prompts: bool = False  # an encoder: a prompt is one item; a block is a place in the step, not memory

    @property
    def max_in_flight(self) -> int:
        return self.pipeline_depth + self.looks_ahead


class Executor(Protocol):
    """Runs plans strictly in the order of their submission, however many are in flight."""

    info: ExecutorInfo

    def submit(self, plan: StepPlan) -> None:
        """Hand over the next step. At most info.max_in_flight are handed over and not collected."""

    def collect(self) -> StepResult:
        """The result of the oldest step that is not collected. Raises ExecutorDead when the executor cannot go on."""

    def execute(self, plan: StepPlan) -> StepResult:
        """submit and collect, for callers with one step at a time."""

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        """Blocks [first, end) hold nothing: their memory goes back to the system, before any later plan; with it what
        steps keep to work in."""

    def watch(self, on_death: Callable[[ExecutorDead], None]) -> None:
        """Call on_death, from whatever thread, when a worker dies that has nothing to do."""

    def timings(self) -> list[RankTimings]:
        """How the ranks spent their time so far; nothing where there is one."""

    def shutdown(self) -> None:
        """Release workers and memory; idempotent."""
