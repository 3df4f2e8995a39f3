"""Copies of whole KV blocks within a cache: copy-on-write of shared prefixes."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 2048


@triton.jit
def copy(cache_ptr, sources_ptr, destinations_ptr, words, BLOCK: tl.constexpr):
    """Grid (pairs, pieces of a block): all copies are made at the same time."""
    pair = tl.program_id(0)
    source = tl.load(sources_ptr + pair).to(tl.int64) * words
    destination = tl.load(destinations_ptr + pair).to(tl.int64) * words
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = c < words
    tl.store(cache_ptr + destination + c, tl.load(cache_ptr + source + c, mask=inside, other=0), mask=inside)


def launch(cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    """cache[destinations[i]] = cache[sources[i]], all at the same time; cache [blocks, ...] contiguous, of any type.

    No destination is a source or a second time a destination.
    """
    raw = cache.view(cache.shape[0], -1).view(torch.uint8)
    raw = raw.view(torch.int32) if raw.shape[1] % 4 == 0 else raw
    words = raw.shape[1]
    copy[(sources.shape[0], -(-words // BLOCK))](raw, sources, destinations, words, BLOCK=BLOCK, num_warps=4)
