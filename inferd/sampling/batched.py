"""The sampler of accelerators: the whole step's rows at once, nothing read back until the caller's one copy.

Same results as sampler.sample_tokens, which edits row by row and is what a CPU wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from inferd_kernels.ops import Ops, SamplingBatch

from inferd.request import LogprobParams
from inferd.sampling.adjust import SamplingRow, completed_bad_words
from inferd.step import NO_TOKEN, NOT_FINITE, SampledToken, TokenLogprobs

Upload: TypeAlias = Callable[[Sequence[np.ndarray]], list[torch.Tensor]]  # host arrays -> device tensors
WORD = 32  # tokens of a mask word


class Download(Protocol):
    """Device tensors on their way to the host."""

    def add(self, values: torch.Tensor) -> int: ...

    def read(self, number: int) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class PendingLogprobs:
    """Log probabilities of R rows on their way: numbers of the tensors chosen [R], ranks [R], top ids and values
    [R, most], asked-for values [R, asked]."""

    params: list[LogprobParams]
    chosen: int
    ranks: int
    top_ids: int
    top_values: int
    asked: int

    def read(self, download: Download) -> list[TokenLogprobs]:
        chosen, ranks, top_ids, top_values, asked = (
            download.read(number).tolist()
            for number in (self.chosen, self.ranks, self.top_ids, self.top_values, self.asked)
        )
        return [
            TokenLogprobs(
                chosen[row],
                ranks[row],
                top_ids[row][: param.top_n] + list(param.token_ids),
                top_values[row][: param.top_n] + asked[row][: len(param.token_ids)],
            )
            for row, param in enumerate(self.params)
        ]


@dataclass(frozen=True, slots=True)
class PendingTokens:
    """S drawn tokens: on the device [S] int64, and on their way to the host. asked: the rows with log probabilities."""

    tokens: torch.Tensor
    number: int
    asked: list[int]
    logprobs: PendingLogprobs | None

    def read(self, download: Download) -> list[SampledToken]:
        reports: dict[int, TokenLogprobs] = {}
        if self.logprobs is not None:
            reports = dict(zip(self.asked, self.logprobs.read(download), strict=True))
        return [
            SampledToken(token_id, reports.get(row) if token_id >= 0 else None)
            for row, token_id in enumerate(download.read(self.number).tolist())
        ]


def draw_tokens(
    ops: Ops,
    logits: torch.Tensor,
    rows: list[SamplingRow],
    logprobs: list[LogprobParams | None],
    upload: Upload,
    download: Download,
) -> PendingTokens:
    """logits [S, V] in any float dtype, one row of them per entry of rows and logprobs; may be overwritten."""
    logits = logits.float()
    finite = torch.isfinite(logits.sum(-1))
    asked = [index for index, param in enumerate(logprobs) if param is not None]
    (asked_rows,) = upload([np.array(asked, np.int64)])
    raw = logits.index_select(0, asked_rows) if asked else None
    narrowed = edit_logits(ops, logits, rows, upload)
    tokens = ops.sample(logits, batch_parameters(rows, upload))
    if narrowed:
        tokens = torch.where(logits.amax(-1) == -torch.inf, NO_TOKEN, tokens)
    tokens = torch.where(finite, tokens, NOT_FINITE)
    reports = None
    if raw is not None:
        chosen = tokens.index_select(0, asked_rows).clamp(min=0)
        reports = pending_logprobs(raw, chosen, [param for param in logprobs if param is not None], upload, download)
    return PendingTokens(tokens, download.add(tokens.int()), asked, reports)


def pending_logprobs(
    logits: torch.Tensor, tokens: torch.Tensor, params: list[LogprobParams], upload: Upload, download: Download
) -> PendingLogprobs:
    """As logprobs.token_logprobs, for logits [R, V] float32 and tokens [R] int64."""
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    most = min(max(param.top_n for param in params), logits.shape[1])
    top_values, top_ids = logprobs.topk(most)
    width = max(len(param.token_ids) for param in params)
    ids = np.zeros((len(params), width), np.int64)
    for row, param in zip(ids, params, strict=True):
        row[: len(param.token_ids)] = param.token_ids
    return PendingLogprobs(
        params,
        download.add(chosen.squeeze(1)),
        download.add(((logprobs > chosen).sum(-1) + 1).int()),
        download.add(top_ids.int()),
        download.add(top_values),
        download.add(logprobs.gather(1, upload([ids])[0])),
    )


def edit_logits(ops: Ops, logits: torch.Tensor, rows: list[SamplingRow], upload: Upload) -> bool:
    """Penalties, then bias, then masks (-inf), in place on logits [S, V] float32. Whether a token may be left out."""
    penalized = [index for index, row in enumerate(rows) if row.history is not None]
    if penalized:
        ops.penalize(logits, *upload(_penalties(rows, penalized)))
    biased = [index for index, row in enumerate(rows) if row.sampling.logit_bias]
    if biased:
        at, tokens, values = upload(_biases(rows, biased))
        logits[at, tokens] += values
    banned = {index: ids for index, row in enumerate(rows) if (ids := _banned(row))}
    masked = [
        index
        for index, row in enumerate(rows)
        if row.mask is not None or row.sampling.allowed_token_ids or index in banned
    ]
    if masked:
        bits = np.stack([_bits(rows[index], banned.get(index, []), logits.shape[1]) for index in masked])
        ops.mask_tokens(logits, *upload([np.array(masked, np.int32), bits]))
    return bool(masked or biased)


def batch_parameters(rows: list[SamplingRow], upload: Upload) -> SamplingBatch:
    """The rows' parameters as tensors [S]."""
    params = [row.sampling for row in rows]
    temperature, top_k, top_p, min_p, seeds, choices, positions = upload(
        [
            np.array([param.temperature for param in params], np.float32),
            np.array([param.top_k for param in params], np.int32),
            np.array([param.top_p for param in params], np.float32),
            np.array([param.min_p for param in params], np.float32),
            np.array([param.seed for param in params], np.uint64).view(np.int64),
            np.array([row.choice for row in rows], np.int32),
            np.array([row.position for row in rows], np.int64),
        ]
    )
    greedy = all(param.temperature == 0 for param in params)
    return SamplingBatch(temperature, top_k, top_p, min_p, seeds, choices, positions, greedy)


def _penalties(rows: list[SamplingRow], penalized: list[int]) -> list[np.ndarray]:
    """The arguments of Ops.penalize after the logits."""
    histories = [history for index in penalized if (history := rows[index].history) is not None]
    width = max(len(history.token_ids) for history in histories)
    tokens = np.full((len(penalized), width), -1, np.int32)
    counts = np.zeros((len(penalized), width), np.int32)
    for row, history in enumerate(histories):
        tokens[row, : len(history.token_ids)] = history.token_ids
        counts[row, : len(history.token_ids)] = history.output_counts
    params = [rows[index].sampling for index in penalized]
    return [
        np.array(penalized, np.int32),
        tokens,
        counts,
        np.array([param.repetition_penalty for param in params], np.float32),
        np.array([param.presence_penalty for param in params], np.float32),
        np.array([param.frequency_penalty for param in params], np.float32),
    ]


def _biases(rows: list[SamplingRow], biased: list[int]) -> list[np.ndarray]:
    """(row, token, value) of each bias."""
    entries = [(index, token, value) for index in biased for token, value in rows[index].sampling.logit_bias]
    at, ids, values = zip(*entries, strict=True)
    return [np.array(at, np.int64), np.array(ids, np.int64), np.array(values, np.float32)]


def _banned(row: SamplingRow) -> list[int]:
    return [*row.blocked_token_ids, *completed_bad_words(row.sampling.bad_words, row.history)]


def _bits(row: SamplingRow, banned: list[int], vocab_size: int) -> np.ndarray:
    """[ceil(V/32)] int32 of the tokens that the row may draw."""
    size = -(-vocab_size // WORD) * 4
    if row.mask is None:
        bits = np.full(size, 0xFF, np.uint8)
    else:
        bits = np.zeros(size, np.uint8)
        held = np.frombuffer(row.mask, np.uint8)[:size]
        bits[: held.size] = held
    if row.sampling.allowed_token_ids:
        allowed = np.zeros(size, np.uint8)
        _set_bits(allowed, row.sampling.allowed_token_ids)
        bits &= allowed
    if banned:
        refused = np.zeros(size, np.uint8)
        _set_bits(refused, banned)
        bits &= ~refused
    return bits.view(np.int32)


def _set_bits(bits: np.ndarray, ids: Sequence[int]) -> None:
    index = np.array(ids, np.int64)
    np.bitwise_or.at(bits, index // 8, (1 << (index % 8)).astype(np.uint8))
