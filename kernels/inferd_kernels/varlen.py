"""Paged attention through torch's `varlen_attn` (FlashAttention): a second CUDA backend, and the oracle of the first.

The KV layout is the same, so a cache whose page is a multiple of 256 tokens is handed over as it is; FlashAttention 2,
which torch carries, accepts no smaller pages, and those are gathered first, on the device and without waiting for it.
One split (`num_splits=1`) makes a row independent of its neighbours. Not run on a GPU: the one at hand had torch 2.11,
which takes no block tables; the tests check the arguments against an emulation.
"""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from inferd_kernels.operands import Attention, PagedBatch

PAGE_MULTIPLE = 256  # tokens
NEEDED = ("block_table", "seqused_k", "enable_gqa", "num_splits")  # parameters of varlen_attn, as of torch 2.13

CACHE_DTYPES = (torch.float16, torch.bfloat16)


def check_torch() -> None:
    """Raises ValueError when this torch's varlen attention cannot read a paged cache."""
    from torch.nn.attention.varlen import varlen_attn

    missing = [name for name in NEEDED if name not in signature(varlen_attn).parameters]
    if missing:
        raise ValueError(
            f"kernel backend 'varlen' needs a torch whose varlen_attn takes {', '.join(missing)} (2.13 does), "
            f"this is {torch.__version__}"
        )


def paged_attention(q: torch.Tensor, attention: Attention, batch: PagedBatch) -> torch.Tensor:
    """As `reference.Ops.paged_attention`, in float16 and bfloat16. Rows without context are zero.

    Raises ValueError for what FlashAttention does not compute: a soft cap, sinks, and caches of another type than q.
    """
    from torch.nn.attention.varlen import varlen_attn

    shape, k_cache, v_cache = attention.shape, attention.cache.k, attention.cache.v
    if shape.softcap or attention.sinks is not None:
        raise ValueError("torch's varlen attention has no soft cap and no sinks; use the triton backend")
    if k_cache.dtype != q.dtype:
        raise ValueError(f"torch's varlen attention wants the cache in {q.dtype}, it is {k_cache.dtype}")
    sequences, width = batch.block_tables.shape
    page = k_cache.shape[1]
    tables = batch.block_tables.clamp(min=0)
    longest = width * page
    if page % PAGE_MULTIPLE == 0:
        keys, values, starts, block_table = k_cache, v_cache, None, tables
    else:
        keys, values = (cache[tables.long()].flatten(0, 2) for cache in (k_cache, v_cache))
        starts = torch.arange(sequences + 1, dtype=torch.int32, device=q.device) * longest
        block_table = None
    out = varlen_attn(
        q,
        keys,
        values,
        batch.cu_seqlens,
        starts,
        batch.max_query_len,
        longest,
        scale=shape.scale,
        window_size=(shape.window - 1 if shape.window else -1, 0),
        enable_gqa=shape.num_heads != shape.num_kv_heads,
        seqused_k=batch.seq_lens,
        block_table=block_table,
        num_splits=1,
    )
    assert isinstance(out, torch.Tensor)  # a pair only where auxiliary results are asked for
    return out
