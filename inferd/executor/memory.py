"""How many bytes the KV pool of one rank may take: of the accelerator's memory, or of the machine's."""

from __future__ import annotations

import torch
from inferd_kernels.host import available_memory

from inferd.blocks.parameters import WHOLE, Share
from inferd.config import CacheConfig
from inferd.models.spec import ModelSpec

CPU_SHARE = 0.25  # of the memory that is free when the pool is sized
CPU_BYTES = 1 << 30  # of all ranks of a machine, so that other programs go on beside us
CPU_MAX_BYTES = 4 << 30  # where one context needs more than CPU_BYTES
LOGITS_BYTES = 128 << 20  # float32 logits held at once


def cache_budget(
    cache: CacheConfig, device: torch.device, working: int, context_bytes: int, num_neighbours: int = 1
) -> int:
    """Bytes that the KV pool may take once the weights are in memory, beside the `working` bytes of a step.

    An accelerator is one rank's, and filled. num_neighbours ranks share the machine's memory: CPU_BYTES, or what one
    sequence of the longest context takes (context_bytes of this rank) up to CPU_MAX_BYTES."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return int(cache.memory_utilization * total) - (total - free) - working
    bound = min(max(CPU_BYTES // num_neighbours, context_bytes), CPU_MAX_BYTES // num_neighbours)
    return min(int(CPU_SHARE * available_memory()) // num_neighbours - working, bound)


def step_bytes(spec: ModelSpec, max_tokens: int, max_rows: int, itemsize: int, share: Share = WHOLE) -> int:
    """Upper estimate of what one step holds beside weights and cache: the widest layer's activations, and logits in the
    model's dtype and in float32 with twice as much again for sampling."""
    widest = max(layer.widest(spec.hidden_size, share) for layer in spec.layers)
    rows = min(max_rows, rows_per_slice(spec.vocab_size))
    return max_tokens * widest * itemsize + rows * spec.vocab_size * (itemsize + 3 * 4)


def rows_per_slice(vocab_size: int) -> int:
    """Rows whose logits are computed at once, so that memory stays bounded whatever the batch."""
    return max(LOGITS_BYTES // (4 * vocab_size), 1)
