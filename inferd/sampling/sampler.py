"""Logits of a step -> sampled tokens. A row's token depends on its own logits, parameters and position alone."""

from __future__ import annotations

from math import isfinite

import numpy as np
import torch
from inferd_kernels.ops import Ops, SamplingBatch

from inferd.request import LogprobParams
from inferd.sampling.adjust import SamplingRow, adjust
from inferd.sampling.logprobs import token_logprobs
from inferd.sampling.masks import apply_masks
from inferd.step import NO_TOKEN, NOT_FINITE, SampledToken, TokenLogprobs


def sample_tokens(
    ops: Ops, logits: torch.Tensor, rows: list[SamplingRow], logprobs: list[LogprobParams | None]
) -> list[SampledToken]:
    """logits [S, V] in any float dtype, one row of them per entry of rows and logprobs; may be overwritten."""
    logits = logits.float()
    totals = logits.sum(-1)  # finite unless a term is not: one pass over the vocabulary
    asked = [index for index, param in enumerate(logprobs) if param is not None]
    raw = logits[asked] if asked else None
    adjusted = [index for index, row in enumerate(rows) if row.adjusts]
    for index in adjusted:
        adjust(logits[index], rows[index])
    masked = [index for index, row in enumerate(rows) if row.mask is not None]
    if masked:
        apply_masks(logits, masked, [row.mask for row in rows if row.mask is not None])
    narrowed = sorted({*adjusted, *masked})
    empty = logits[narrowed].amax(-1) == -torch.inf if narrowed else None
    tokens = ops.sample(logits, sampling_batch(rows, logits.device))
    if empty is not None:
        tokens[narrowed] = tokens[narrowed].masked_fill(empty, NO_TOKEN)
    drawn = zip(tokens.tolist(), totals.tolist(), strict=True)
    token_ids = [token if isfinite(total) else NOT_FINITE for token, total in drawn]
    reports: dict[int, TokenLogprobs] = {}
    if raw is not None:
        params = [param for param in logprobs if param is not None]
        reports = dict(zip(asked, token_logprobs(raw, tokens[asked].clamp(min=0), params), strict=True))
    return [
        SampledToken(token_id, reports.get(index) if token_id >= 0 else None)
        for index, token_id in enumerate(token_ids)
    ]


def sampling_batch(rows: list[SamplingRow], device: torch.device) -> SamplingBatch:
    """The rows' parameters as tensors [S]."""

    def column(values: list[float] | list[int], dtype: type[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.array(values, dtype)).to(device)

    params = [row.sampling for row in rows]
    seeds = np.array([param.seed for param in params], np.uint64).view(np.int64)
    return SamplingBatch(
        temperature=column([param.temperature for param in params], np.float32),
        top_k=column([param.top_k for param in params], np.int32),
        top_p=column([param.top_p for param in params], np.float32),
        min_p=column([param.min_p for param in params], np.float32),
        seeds=torch.from_numpy(seeds).to(device),
        choices=column([row.choice for row in rows], np.int32),
        positions=column([row.position for row in rows], np.int64),
        all_greedy=all(param.temperature == 0 for param in params),
    )
