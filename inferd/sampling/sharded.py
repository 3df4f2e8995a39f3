"""Sampling where each rank has the logits of its part of the vocabulary, with results as if one had them all.

Greedy and Gumbel-max draws need each rank's best token only, because the noise of a token is the same wherever it is
computed; log probabilities need a log-sum-exp and the best few. Only rows with top-k, top-p or min-p gather all logits.
Every rank of a stage calls these functions in the same order with the same rows, and gets the same results.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops, SamplingBatch
from inferd_kernels.reference import gumbel_noise

from inferd.parallel.context import TensorGroup
from inferd.request import LogprobParams
from inferd.sampling.adjust import SamplingRow, adjust
from inferd.sampling.masks import apply_masks
from inferd.sampling.sampler import sampling_batch
from inferd.step import NO_TOKEN, NOT_FINITE, SampledToken, TokenLogprobs


@dataclass(frozen=True, slots=True)
class VocabShard:
    """This rank's logits are those of tokens first, first + 1, ..; all ranks together have `total`."""

    first: int
    total: int
    group: TensorGroup

    @property
    def is_whole(self) -> bool:
        return self.group.size == 1


def sample_sharded(
    ops: Ops,
    logits: torch.Tensor,
    rows: list[SamplingRow],
    logprobs: list[LogprobParams | None],
    vocab: VocabShard,
) -> list[SampledToken]:
    """logits [S, this rank's V]; otherwise like sampler.sample_tokens."""
    logits = logits.float()
    finite = torch.isfinite(logits.sum(-1))
    asked = [index for index, param in enumerate(logprobs) if param is not None]
    raw = logits[asked] if asked else None
    for index, row in enumerate(rows):
        if row.adjusts:
            adjust(logits[index], row, vocab.first)
    masked = [index for index, row in enumerate(rows) if row.mask is not None]
    if masked:
        apply_masks(logits, masked, [row.mask for row in rows if row.mask is not None], vocab.first)
    tokens = _draw(logits, finite, sampling_batch(rows, logits.device), vocab)
    filtered = [index for index, row in enumerate(rows) if _filters(row)]
    if filtered:
        full = _gather_logits(logits[filtered], vocab)
        drawn = ops.sample(full, sampling_batch([rows[index] for index in filtered], logits.device))
        tokens[filtered] = torch.where(tokens[filtered] < 0, tokens[filtered], drawn)
    reports: dict[int, TokenLogprobs] = {}
    if raw is not None:
        params = [param for param in logprobs if param is not None]
        reports = dict(zip(asked, sharded_logprobs(raw, tokens[asked].clamp(min=0), params, vocab), strict=True))
    return [
        SampledToken(token_id, reports.get(index) if token_id >= 0 else None)
        for index, token_id in enumerate(tokens.tolist())
    ]


def _filters(row: SamplingRow) -> bool:
    """Whether which tokens may be drawn depends on the whole distribution."""
    sampling = row.sampling
    return sampling.temperature > 0 and bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)


def _draw(logits: torch.Tensor, finite: torch.Tensor, batch: SamplingBatch, vocab: VocabShard) -> torch.Tensor:
    """One token per row [S], or NOT_FINITE, or NO_TOKEN where nothing is left to draw; filters are left out.

    One collective: each rank's best (value, token, finite), exact in float64. Ties go to the lowest token.
    """
    scores = logits
    if not batch.all_greedy:
        scores = logits.clone()
        hot = (batch.temperature > 0).nonzero().flatten()
        noise = gumbel_noise(
            logits.shape[1], batch.seeds[hot], batch.choices[hot], batch.positions[hot], first=vocab.first
        )
        scores[hot] = logits[hot] / batch.temperature[hot].unsqueeze(1) + noise
    values, tokens = scores.max(-1)
    own = torch.stack((values.double(), (tokens + vocab.first).double(), finite.double()))
    values, tokens, finite = vocab.group.all_gather(own).unbind(1)
    best = values.argmax(0, keepdim=True)
    drawn = torch.where(values.gather(0, best)[0] > -torch.inf, tokens.gather(0, best)[0].long(), NO_TOKEN)
    return torch.where(finite.bool().all(0), drawn, NOT_FINITE)


def _gather_logits(logits: torch.Tensor, vocab: VocabShard) -> torch.Tensor:
    """[R, this rank's V] of every rank -> [R, total]; parts may differ in size, so they are padded on the way."""
    own = torch.tensor([logits.shape[1]], device=logits.device)
    sizes = vocab.group.all_gather(own).flatten().tolist()
    padded = torch.nn.functional.pad(logits, (0, max(sizes) - logits.shape[1]))
    parts = vocab.group.all_gather(padded).unbind(0)
    return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)


def sharded_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, params: list[LogprobParams], vocab: VocabShard
) -> list[TokenLogprobs]:
    """logits [R, this rank's V] float32; otherwise like logprobs.token_logprobs. Two collectives."""
    most = min(max((param.top_n for param in params), default=0), vocab.total)
    num_asked = max((len(param.token_ids) for param in params), default=0)
    asked = torch.tensor(
        [[*param.token_ids, *[-1] * (num_asked - len(param.token_ids))] for param in params], device=logits.device
    ).reshape(len(params), num_asked)
    wanted = _held(logits, torch.cat((tokens.unsqueeze(1), asked.long()), 1), vocab)
    largest = logits.amax(-1, keepdim=True)
    sums = (logits - largest).exp().sum(-1, keepdim=True)
    top_values, top_ids = _own_top(logits, most, vocab)
    own = torch.cat([part.double() for part in (largest, sums, wanted, top_values, top_ids)], 1)
    parts = vocab.group.all_gather(own)
    largest, sums, wanted, top_values, top_ids = parts.split((1, 1, 1 + num_asked, most, most), 2)
    maximum = largest.amax(0)
    normalizer = maximum + (sums * (largest - maximum).exp()).sum(0).log()
    wanted = wanted.amax(0)
    ranks = _count_above(logits, wanted[:, :1], vocab)
    candidates, ids = (part.transpose(0, 1).flatten(1) for part in (top_values, top_ids))
    order = candidates.sort(dim=-1, descending=True, stable=True).indices[:, :most]
    tops = ids.gather(1, order).long().tolist(), (candidates.gather(1, order) - normalizer).tolist()
    values = (wanted - normalizer).tolist()
    return [
        TokenLogprobs(
            values[row][0],
            ranks[row],
            tops[0][row][: param.top_n] + list(param.token_ids),
            tops[1][row][: param.top_n] + values[row][1 : 1 + len(param.token_ids)],
        )
        for row, param in enumerate(params)
    ]


def _held(logits: torch.Tensor, ids: torch.Tensor, vocab: VocabShard) -> torch.Tensor:
    """Logits [R, N] of token ids [R, N]; -inf for those of other ranks."""
    local = ids - vocab.first
    is_held = (local >= 0) & (local < logits.shape[1])
    return torch.where(is_held, logits.gather(1, torch.where(is_held, local, 0)), -torch.inf)


def _own_top(logits: torch.Tensor, most: int, vocab: VocabShard) -> tuple[torch.Tensor, torch.Tensor]:
    """The `most` largest logits [R, most] and their token ids, -inf and -1 beyond what this rank has."""
    count = min(most, logits.shape[1])
    values, ids = logits.topk(count)
    missing = (0, most - count)
    pad = torch.nn.functional.pad
    return pad(values, missing, value=-torch.inf), pad(ids + vocab.first, missing, value=-1)


def _count_above(logits: torch.Tensor, thresholds: torch.Tensor, vocab: VocabShard) -> list[int]:
    """1 + how many tokens of the whole vocabulary lie above each row's threshold."""
    counts = (logits > thresholds).sum(-1)
    ranks: list[int] = (vocab.group.all_reduce(counts) + 1).tolist()
    return ranks
