"""Limits of a scheduler, resolved from the configuration and from what the executor could build."""

from __future__ import annotations

from dataclasses import dataclass

from inferd.cache_groups import FULL, CacheGroups
from inferd.config import SchedulerConfig, SpeculativeConfig


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the executor holds: KV blocks, and the model's context and vocabulary, in tokens."""

    num_blocks: int
    block_size: int
    max_context_tokens: int
    vocab_size: int
    pipeline_depth: int = 1  # plans the executor works on at the same time
    whole_prompts: bool = False  # attention looks both ways: no chunks, and no prefix that could be reused
    looks_ahead: bool = False  # the executor takes a plan whose tokens the one before draws
    windows: tuple[int, ...] = FULL  # of the cache groups


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Bounds of one step and of one sequence, in tokens; seats are sequences that run at the same time."""

    token_budget: int
    seats: int  # at most token_budget, so that every running sequence can have its next token in every step
    chunked_prefill: bool
    max_context: int  # what fits the model and, alone, the KV pool
    vocab_size: int
    pipeline_depth: int
    looks_ahead: bool
    speculative: SpeculativeConfig | None


def cache_groups(config: SchedulerConfig, capacity: Capacity) -> CacheGroups:
    chunk = config.max_num_batched_tokens
    if not config.chunked_prefill or capacity.whole_prompts:
        chunk = max(chunk, capacity.max_context_tokens)
    return CacheGroups(capacity.windows, capacity.block_size, chunk)


def step_limits(config: SchedulerConfig, capacity: Capacity) -> StepLimits:
    return StepLimits(
        token_budget=config.max_num_batched_tokens,
        seats=min(config.max_num_seqs, config.max_num_batched_tokens),
        chunked_prefill=config.chunked_prefill and not capacity.whole_prompts,
        max_context=min(capacity.max_context_tokens, cache_groups(config, capacity).longest(capacity.num_blocks)),
        vocab_size=capacity.vocab_size,
        pipeline_depth=capacity.pipeline_depth,
        looks_ahead=capacity.looks_ahead,
        speculative=None if capacity.whole_prompts else config.speculative,
    )
