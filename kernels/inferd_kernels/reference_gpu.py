"""Oracles of the Triton kernels beside `inferd_kernels.reference`, attention in float64. Nothing here is fast."""

from __future__ import annotations

import torch

from inferd_kernels.operands import AttentionShape, PagedBatch
from inferd_kernels.reference import quantize_rows as quantize_rows


def attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    batch: PagedBatch,
    shape: AttentionShape,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reference.paged_attention` in float64, with optional 8-bit caches (scales [blocks,P,Hk]) and sinks [Hq].

    A sink adds exp(sink) to the softmax denominator of its head. Rows of sequences without context are 0.
    """
    out = torch.zeros(q.shape, dtype=torch.float64)
    starts, page = batch.cu_seqlens.tolist(), k_cache.shape[1]
    group = shape.num_heads // shape.num_kv_heads
    for index, length in enumerate(batch.seq_lens.tolist()):
        begin, end = starts[index], starts[index + 1]
        if begin == end or length == 0:
            continue
        blocks = batch.block_tables[index, : -(-length // page)].long()
        keys, values = (
            _gather(cache, None if scales is None else scales[side], blocks, length).repeat_interleave(group, 1)
            for side, cache in enumerate((k_cache, v_cache))
        )
        scores = torch.einsum("qhd,nhd->hqn", q[begin:end].double(), keys) * shape.scale
        if shape.softcap:
            scores = shape.softcap * torch.tanh(scores / shape.softcap)
        scores = scores.masked_fill(~_visible(end - begin, length, shape.window), float("-inf"))
        if sinks is not None:
            extra = sinks.double()[:, None, None].expand(-1, end - begin, 1)
            weights = torch.cat((scores, extra), -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        out[begin:end] = torch.einsum("hqn,nhd->qhd", weights, values)
    return out


def _gather(cache: torch.Tensor, scale: torch.Tensor | None, blocks: torch.Tensor, length: int) -> torch.Tensor:
    values = cache[blocks].flatten(0, 1)[:length].double()
    return values if scale is None else values * scale[blocks].flatten(0, 1)[:length].double().unsqueeze(-1)


def _visible(queries: int, length: int, window: int) -> torch.Tensor:
    rows = torch.arange(length - queries, length).unsqueeze(1)
    columns = torch.arange(length).unsqueeze(0)
    return (columns <= rows) & (columns > rows - window) if window else columns <= rows


def unpack_w4(
    packed: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None = None, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """[N,K] values scale (nibble - 8) + offset of packed [N,K/2]: low nibbles are the first K/2 weights, high the
    rest."""
    nibbles = torch.cat((packed & 0xF, packed >> 4), 1).float() - 8
    group = nibbles.shape[1] // scale.shape[1]
    values = nibbles * scale.float().repeat_interleave(group, 1)
    if offset is not None:
        values = values + offset.float().repeat_interleave(group, 1)
    return values.to(dtype)
