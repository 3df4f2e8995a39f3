"""What changes logits before the draw: penalties, bias, masks. Applied row by row, only to rows that ask for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from inferd.request import SamplingParams
from inferd.sampling.history import TokenHistory


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One token to draw. position is the one the token will have; num_output_tokens come before it.

    blocked_token_ids may not be drawn now (min_tokens is not reached); nor tokens outside the mask, as in StepPlan.
    """

    sampling: SamplingParams
    history: TokenHistory | None
    choice: int
    position: int
    blocked_token_ids: tuple[int, ...] = ()
    mask: bytes | None = None

    @property
    def adjusts(self) -> bool:
        sampling = self.sampling
        return bool(
            sampling.needs_history or sampling.logit_bias or sampling.allowed_token_ids or self.blocked_token_ids
        )


def adjust(logits: torch.Tensor, row: SamplingRow, first: int = 0) -> None:
    """logits [V] float32, in place: repetition, frequency and presence penalties, then bias, then masks (-inf).

    logits are those of tokens first, first + 1, ..; what concerns other tokens is left out.
    """
    held = range(first, first + len(logits))
    if row.history is not None:
        penalize(logits, row.sampling, row.history, first)
    bias = [(token, value) for token, value in row.sampling.logit_bias if token in held]
    if bias:
        ids, values = zip(*bias, strict=True)
        logits[torch.tensor(ids, device=logits.device) - first] += torch.tensor(values, device=logits.device)
    if row.sampling.allowed_token_ids:
        ids = tuple(token for token in row.sampling.allowed_token_ids if token in held)
        allowed = torch.tensor(ids, dtype=torch.int64, device=logits.device) - first
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    banned = [*row.blocked_token_ids, *completed_bad_words(row.sampling.bad_words, row.history)]
    banned = [token - first for token in banned if token in held]
    if banned:
        logits[torch.tensor(banned, device=logits.device)] = -torch.inf


def penalize(logits: torch.Tensor, sampling: SamplingParams, history: TokenHistory, first: int = 0) -> None:
    """Repetition (Keskar et al. 2019): l / r for l > 0, else l * r, over prompt and output. Then, over the output,
    l -= frequency * count + presence (OpenAI)."""
    token_ids, output_counts = history.token_ids - first, history.output_counts
    held = (token_ids >= 0) & (token_ids < len(logits))
    if not held.all():
        token_ids, output_counts = token_ids[held], output_counts[held]
    ids = torch.from_numpy(token_ids).to(logits.device)
    values = logits[ids]
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        values = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        counts = torch.from_numpy(output_counts).to(logits.device)
        values = values - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
    logits[ids] = values


def completed_bad_words(bad_words: tuple[tuple[int, ...], ...], history: TokenHistory | None) -> list[int]:
    """The last tokens of the words that would be completed: those whose beginning ends the sequence so far."""
    return [word[-1] for word in bad_words if len(word) == 1 or (history is not None and history.ends_with(word[:-1]))]
