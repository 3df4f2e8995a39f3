"""How many KV blocks fit, and how long a context they serve. Arithmetic over bytes, the same for every device."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from inferd.config import CacheConfig, EngineConfig
from inferd.errors import StartupError
from inferd.models.spec import DecoderSpec

logger = logging.getLogger(__name__)

CPU_SHARE = 0.25  # of the memory that is free when the pool is sized
CPU_MAX_BYTES = 4 << 30
LOGITS_BYTES = 128 << 20  # float32 logits held at once
CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class KVPlan:
    """num_blocks of block_bytes each (K and V of every layer); max_context tokens fit one sequence."""

    num_blocks: int
    block_size: int
    block_bytes: int
    max_context: int

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def block_bytes(spec: DecoderSpec, block_size: int, itemsize: int) -> int:
    return 2 * spec.num_layers * block_size * spec.kv_size * itemsize


def requested_context(spec: DecoderSpec, max_model_len: int | None) -> int:
    """The longest sequence asked for, before memory is known."""
    if max_model_len is None:
        return spec.context_length
    if not 1 <= max_model_len <= spec.context_length:
        raise StartupError(
            f"max_model_len is {max_model_len}; the model's context is 1 to {spec.context_length} tokens"
        )
    return max_model_len


def plan_kv(spec: DecoderSpec, config: EngineConfig, itemsize: int, budget: int) -> KVPlan:
    """The KV pool of at most `budget` bytes, unless config.cache states its size.

    A pool smaller than one context lowers the context with a warning; StartupError when max_model_len asked for it.
    """
    cache, page = config.cache, config.cache.block_size
    context = requested_context(spec, config.model.max_model_len)
    size = block_bytes(spec, page, itemsize)
    per_context = -(-context // page)
    num_blocks = _stated_blocks(cache, size)
    if num_blocks is None:
        num_blocks = min(config.scheduler.max_num_seqs * per_context, budget // size)
    if num_blocks < 1:
        raise StartupError(f"no KV block fits: one takes {size} bytes, {max(budget, 0)} are free for the cache")
    if num_blocks < per_context:
        fits = num_blocks * page
        if config.model.max_model_len is not None:
            raise StartupError(
                f"max_model_len is {context}, but the KV cache holds {fits} tokens ({num_blocks} blocks)"
            )
        logger.warning("context lowered from %d to %d tokens: that is what the KV cache holds", context, fits)
        context = fits
    return KVPlan(num_blocks, page, size, context)


def _stated_blocks(cache: CacheConfig, size: int) -> int | None:
    if cache.num_blocks is not None:
        return cache.num_blocks
    return None if cache.memory_bytes is None else cache.memory_bytes // size


def cache_budget(spec: DecoderSpec, config: EngineConfig, device: torch.device, itemsize: int) -> int:
    """Bytes that the KV pool may take once the weights are in memory."""
    working = step_bytes(spec, config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs, itemsize)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(config.cache.memory_utilization * total) - (total - free) - working
    return min(int(CPU_SHARE * available_memory()), CPU_MAX_BYTES) - working


def step_bytes(spec: DecoderSpec, max_tokens: int, max_rows: int, itemsize: int) -> int:
    """Upper estimate of what one step holds beside weights and cache: the widest layer's activations, and logits in the
    model's dtype and in float32 with twice as much again for sampling."""
    widest = 3 * spec.intermediate_size + 2 * (spec.q_size + 2 * spec.kv_size) + 4 * spec.hidden_size
    rows = min(max_rows, rows_per_slice(spec.vocab_size))
    return max_tokens * widest * itemsize + rows * spec.vocab_size * (itemsize + 3 * 4)


def rows_per_slice(vocab_size: int) -> int:
    """Rows whose logits are computed at once, so that memory stays bounded whatever the batch."""
    return max(LOGITS_BYTES // (4 * vocab_size), 1)


def available_memory() -> int:
    """Bytes this process can still take: MemAvailable, or what the control group leaves when that is less."""
    fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else max(min(available, int(limit) - used), 0)
