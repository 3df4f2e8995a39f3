"""The seam between the planes: what the engine core knows of an executor. Loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from inferd.step import StepPlan, StepResult

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
    whole_prompts: bool = False  # an encoder: a prompt is one item; a block is a place in the step, not memory


class Executor(Protocol):
    info: ExecutorInfo

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises ExecutorDead when the executor cannot go on."""

    def shutdown(self) -> None:
        """Release workers and memory; idempotent."""
