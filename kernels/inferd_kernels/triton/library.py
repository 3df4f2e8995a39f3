"""The kernels as `torch.library` custom ops of the namespace inferd, each with a fake implementation.

All are safe to capture in a CUDA graph: grids follow from shapes and from the plan's integers, lengths are read on the
device, nothing waits for it.
"""

from __future__ import annotations

import torch

from inferd_kernels.triton import activation, norm, paged_decode, paged_prefill, rope_kv
from inferd_kernels.triton import copy_blocks as block_copies
from inferd_kernels.triton import logits as edits
from inferd_kernels.triton import sample as sampling
from inferd_kernels.triton.tiles import architecture, decode_tile, prefill_tile


@torch.library.custom_op("inferd::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    norm.launch(out, None, None, x, None, weight, eps)
    return out


@rms_norm.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("inferd::add_rms_norm", mutates_args=())
def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, hidden = torch.empty_like(residual), torch.empty_like(residual)
    norm.launch(out, hidden, None, x, residual, weight, eps)
    return out, hidden


@add_rms_norm.register_fake
def _(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(residual), torch.empty_like(residual)


@torch.library.custom_op("inferd::silu_mul", mutates_args=())
def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
    activation.launch(out, gate_up)
    return out


@silu_mul.register_fake
def _(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@torch.library.custom_op("inferd::copy_blocks", mutates_args=("cache",))
def copy_blocks(cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    block_copies.launch(cache, sources, destinations)


@copy_blocks.register_fake
def _(cache: torch.Tensor, sources: torch.Tensor, destinations: torch.Tensor) -> None:
    return None


@torch.library.custom_op("inferd::rope_kv_write", mutates_args=("k_cache", "v_cache", "k_scale", "v_scale"))
def rope_kv_write(
    qkv: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cos_sin: torch.Tensor | None,
    q_weight: torch.Tensor | None,
    k_weight: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    q = _empty_q(qkv, k_cache)
    scales = None if k_scale is None or v_scale is None else (k_scale, v_scale)
    norms = None if q_weight is None or k_weight is None else (q_weight, k_weight)
    rope_kv.launch(q, qkv, k_cache, v_cache, scales, positions, slots, cos_sin, norms, eps)
    return q


@rope_kv_write.register_fake
def _(qkv: torch.Tensor, k_cache: torch.Tensor, *_: object) -> torch.Tensor:
    return _empty_q(qkv, k_cache)


def _empty_q(qkv: torch.Tensor, k_cache: torch.Tensor) -> torch.Tensor:
    kv_heads, dim = k_cache.shape[2:]
    return qkv.new_empty(qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads, dim)


@torch.library.custom_op("inferd::paged_attention", mutates_args=())
def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens: torch.Tensor,
    seq_lens: torch.Tensor,
    block_tables: torch.Tensor,
    num_decodes: int,
    max_seq_len: int,
    scale: float,
    window: int,
    softcap: float,
) -> torch.Tensor:
    out = torch.empty_like(q)
    arch, dim, element = architecture(), q.shape[2], k_cache.element_size()
    scales = None if k_scale is None or v_scale is None else (k_scale, v_scale)
    if num_decodes:
        rows = slice(0, num_decodes)
        paged_decode.launch(
            out[rows], q[rows], k_cache, v_cache, scales, sinks, block_tables[rows], seq_lens[rows],
            scale=scale, window=window, softcap=softcap, max_seq_len=max_seq_len,
            tile=decode_tile(arch, element, dim, k_cache.shape[2]),
        )  # fmt: skip
    if q.shape[0] > num_decodes:
        paged_prefill.launch(
            out, q, k_cache, v_cache, scales, sinks, block_tables[num_decodes:], cu_seqlens[num_decodes:],
            seq_lens[num_decodes:], scale=scale, window=window, softcap=softcap,
            tile=prefill_tile(arch, element, dim),
        )  # fmt: skip
    return out


@paged_attention.register_fake
def _(q: torch.Tensor, *_: object) -> torch.Tensor:
    return torch.empty_like(q)


@torch.library.custom_op("inferd::sample", mutates_args=())
def sample(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    seeds: torch.Tensor,
    choices: torch.Tensor,
    positions: torch.Tensor,
    all_greedy: bool,
) -> torch.Tensor:
    out = temperature.new_empty(logits.shape[0], dtype=torch.int64)
    sampling.launch(out, logits, temperature, (top_k, top_p, min_p), (seeds, choices, positions), all_greedy)
    return out


@sample.register_fake
def _(logits: torch.Tensor, temperature: torch.Tensor, *_: object) -> torch.Tensor:
    return temperature.new_empty(logits.shape[0], dtype=torch.int64)


@torch.library.custom_op("inferd::penalize", mutates_args=("logits",))
def penalize(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    edits.launch_penalties(logits, rows, tokens, counts, repetition, presence, frequency)


@torch.library.custom_op("inferd::mask_tokens", mutates_args=("logits",))
def mask_tokens(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    edits.launch_bitmask(logits, rows, bits)


@penalize.register_fake
@mask_tokens.register_fake
def _(*_: object, **__: object) -> None:
    return None
