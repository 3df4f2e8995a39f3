"""How many KV blocks there are, and how long a context they serve. Arithmetic over bytes: loads no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from inferd.blocks.caches import CacheNeed, group_windows
from inferd.blocks.parameters import WHOLE
from inferd.cache_groups import FULL, CacheGroups
from inferd.config import CacheConfig, EngineConfig
from inferd.errors import StartupError
from inferd.models.spec import ModelSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KVRoom:
    """What one rank says of its memory: a block (K and V of its layers and heads), and what all blocks may take."""

    block_bytes: int
    budget: int


@dataclass(frozen=True, slots=True)
class KVPlan:
    """num_blocks, of block_bytes over all ranks; max_context tokens fit one sequence. windows: of the cache groups."""

    num_blocks: int
    block_size: int
    block_bytes: int
    max_context: int
    windows: tuple[int, ...] = FULL

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def block_bytes(needs: Iterable[CacheNeed | None], block_size: int, itemsize: int) -> int:
    """A block of all layers with these needs."""
    return sum(need.block_bytes(block_size, itemsize) for need in needs if need is not None)


def planned_groups(spec: ModelSpec, config: EngineConfig) -> CacheGroups:
    """The same on every rank, whatever layers it has."""
    context = requested_context(spec, config.model.max_model_len)
    windows = group_windows([layer.mixer.cache_need(WHOLE) for layer in spec.layers], context)
    limits = config.scheduler
    chunk = limits.max_num_batched_tokens if limits.chunked_prefill else max(limits.max_num_batched_tokens, context)
    return CacheGroups(windows, config.cache.block_size, chunk)


def requested_context(spec: ModelSpec, max_model_len: int | None) -> int:
    """The longest sequence asked for, before memory is known."""
    if max_model_len is None:
        return spec.context_length
    if not 1 <= max_model_len <= spec.context_length:
        raise StartupError(
            f"max_model_len is {max_model_len}; the model's context is 1 to {spec.context_length} tokens"
        )
    return max_model_len


def plan_kv(spec: ModelSpec, config: EngineConfig, rooms: Sequence[KVRoom]) -> KVPlan:
    """A KV pool that fits every rank, unless config.cache states its size (memory_bytes: of each rank).

    A pool smaller than one context lowers the context with a warning; StartupError when max_model_len asked for it.
    """
    page = config.cache.block_size
    context = requested_context(spec, config.model.max_model_len)
    groups = planned_groups(spec, config)
    per_context = groups.blocks_for(context)
    num_blocks = config.cache.num_blocks
    if num_blocks is None:
        most = config.scheduler.max_num_seqs * per_context
        num_blocks = min(_fitting_blocks(config.cache, room, most) for room in rooms)
    if not groups.longest(num_blocks):
        room = min(rooms, key=lambda room: room.budget)
        raise StartupError(
            f"no KV block fits: one takes {room.block_bytes} bytes, {max(room.budget, 0)} are free for the cache"
        )
    if num_blocks < per_context:
        fits = groups.longest(num_blocks)
        if config.model.max_model_len is not None:
            raise StartupError(
                f"max_model_len is {context}, but the KV cache holds {fits} tokens ({num_blocks} blocks)"
            )
        logger.warning("context lowered from %d to %d tokens: that is what the KV cache holds", context, fits)
        context = fits
    plan = KVPlan(num_blocks, page, sum(room.block_bytes for room in rooms), context, groups.windows)
    logger.info(
        "KV cache: %d tokens in %d blocks, %.2f GiB of memory when full; --kv-cache-memory-bytes sets another size",
        *(num_blocks * page // len(groups.windows), num_blocks, plan.total_bytes / (1 << 30)),
    )
    return plan


def _fitting_blocks(cache: CacheConfig, room: KVRoom, most: int) -> int:
    if cache.memory_bytes is not None:
        return cache.memory_bytes // room.block_bytes
    return min(most, room.budget // room.block_bytes)
