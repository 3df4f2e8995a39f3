"""The attention launches over an AttentionProblem, with outputs that start as NaN."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from inferd_kernels.proof.problems import AttentionProblem
from inferd_kernels.triton import paged_decode, paged_prefill
from inferd_kernels.triton.tiles import AttentionTile

DECODE_TILE = AttentionTile(16, 16, 4, 2, split=32)
PREFILL_TILE = AttentionTile(16, 16, 4, 2)


def _options(problem: AttentionProblem) -> dict[str, Any]:
    shape = problem.shape
    return {"scale": shape.scale, "window": shape.window, "softcap": shape.softcap}


def decode(
    problem: AttentionProblem,
    tile: AttentionTile = DECODE_TILE,
    max_seq_len: int | None = None,
    module: ModuleType | Any = paged_decode,
) -> torch.Tensor:
    out = torch.full_like(problem.q, float("nan"))
    batch = problem.batch
    module.launch(
        out, problem.q, problem.k_cache, problem.v_cache, problem.scales, problem.sinks, batch.block_tables,
        batch.seq_lens, max_seq_len=max_seq_len or batch.max_seq_len, tile=tile, **_options(problem),
    )  # fmt: skip
    return out


def prefill(
    problem: AttentionProblem, tile: AttentionTile = PREFILL_TILE, module: ModuleType | Any = paged_prefill
) -> torch.Tensor:
    out = torch.full_like(problem.q, float("nan"))
    batch = problem.batch
    module.launch(
        out, problem.q, problem.k_cache, problem.v_cache, problem.scales, problem.sinks, batch.block_tables,
        batch.cu_seqlens, batch.seq_lens, tile=tile, **_options(problem),
    )  # fmt: skip
    return out
