"""Torch definitions of the operations that exist on GPUs alone: sinks, row quantization, 4-bit weights, MoE.

With `inferd_kernels.reference` this is what the Triton kernels are tested against. Nothing here is fast.
"""

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


def moe_route(logits: torch.Tensor, top_k: int, renormalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts [T,k] int32, weights [T,k] float32): softmax over E, its k largest, ties to the lowest index."""
    weights = logits.float().softmax(-1)
    experts = logits.float().sort(dim=-1, descending=True, stable=True).indices[:, :top_k]
    chosen = weights.gather(1, experts)
    return experts.int(), chosen / chosen.sum(-1, keepdim=True) if renormalize else chosen


def moe_mlp(
    x: torch.Tensor,
    logits: torch.Tensor,
    gate_up: torch.Tensor,
    down: torch.Tensor,
    top_k: int,
    renormalize: bool = True,
) -> torch.Tensor:
    """sum over the k experts of weight * down[e] (silu(gate) * up) for x [T,H], gate_up [E,2I,H], down [E,H,I],
    float64."""
    experts, weights = moe_route(logits, top_k, renormalize)
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for expert, weight in zip(experts[token].tolist(), weights[token].tolist(), strict=True):
            gate, up = (gate_up[expert].double() @ x[token].double()).chunk(2)
            out[token] += weight * (down[expert].double() @ (torch.nn.functional.silu(gate) * up))
    return out
