"""The worker of one accelerator: launches a step without waiting for it, and reads its results with one copy.

Decode steps replay captured graphs, steps with prompt tokens run op by op; sampling stays on the device. Several steps
may be launched before the first one's results are read: items with PENDING in place of a token take the token that the
step before drew where it is, on the device.

It needs ops that wait for nothing, which Triton's are. In Triton's interpreter the same code runs on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from inferd.executor.batch import ForwardBatch, build_batch
from inferd.executor.decode_graphs import DecodeGraphs
from inferd.executor.memory import rows_per_slice
from inferd.executor.sequence_state import SequenceState, apply_changes
from inferd.executor.transfer import Download, upload
from inferd.models.model import Model
from inferd.request import LogprobParams
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.batched import PendingLogprobs, PendingTokens, draw_tokens, pending_logprobs
from inferd.step import PENDING, BlockCopy, PlanItem, SampledToken, SequenceResult, StepPlan, StepResult


@dataclass(slots=True)
class LaunchedStep:
    """A step on its way. The lists of prompt log probabilities and vectors are aligned with plan.items."""

    plan: StepPlan
    download: Download
    started: float
    tokens: list[PendingTokens] = field(default_factory=list)  # of slices, one after another
    places: list[int] = field(default_factory=list)  # item of each sample
    prompt_logprobs: list[list[PendingLogprobs]] = field(default_factory=list)
    vectors: list[int | None] = field(default_factory=list)  # numbers of downloads

    def results(self) -> list[SequenceResult]:
        """Waits for the device."""
        samples: list[list[SampledToken]] = [[] for _ in self.plan.items]
        drawn = [token for part in self.tokens for token in part.read(self.download)]
        for place, token in zip(self.places, drawn, strict=True):
            samples[place].append(token)
        return [
            SequenceResult(
                item.seq_id,
                samples[index],
                [entry for part in self.prompt_logprobs[index] for entry in part.read(self.download)],
                self._vector(self.vectors[index]),
            )
            for index, item in enumerate(self.plan.items)
        ]

    def _vector(self, number: int | None) -> bytes:
        """Little-endian values; nothing when one is not finite, for then none can be trusted."""
        if number is None:
            return b""
        values = self.download.read(number)
        return values.astype("<f4").tobytes() if bool(np.isfinite(values).all()) else b""


class DeviceWorker:
    """Owns a model that is one stage on one device, its KV memory and the sequence states; schedules nothing."""

    def __init__(self, decoder: Model, block_size: int, device: torch.device, graphs: DecodeGraphs) -> None:
        self._decoder = decoder
        self._block_size = block_size
        self._device = device
        self._graphs = graphs
        self._states: dict[int, SequenceState] = {}
        self._slice_rows = rows_per_slice(decoder.spec.vocab_size)
        self._drawn: torch.Tensor | None = None  # tokens of the last step, on the device
        self._drawn_rows: dict[int, int] = {}  # seq_id -> row of _drawn
        self._read_at = 0.0  # when the last results were there

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Apply dropped, new and copies, then enqueue what computes the items."""
        step = LaunchedStep(plan, Download(self._device), time.perf_counter())
        apply_changes(self._states, plan)
        self._copy_blocks(plan.copies)
        if plan.items:
            self._compute(step)
        step.download.start()
        return step

    @torch.inference_mode()
    def finish(self, step: LaunchedStep) -> StepResult:
        """Wait for the oldest launched step that is not finished; results in the order of its items."""
        results = step.results()
        started, self._read_at = max(step.started, self._read_at), time.perf_counter()
        return StepResult(step.plan.step, results, self._read_at - started)

    def _upload(self, arrays: Sequence[np.ndarray]) -> list[torch.Tensor]:
        return upload(arrays, self._device)

    def _copy_blocks(self, copies: list[BlockCopy]) -> None:
        if copies:
            sources = np.array([copy.source for copy in copies], np.int64)
            destinations = np.array([copy.destination for copy in copies], np.int64)
            self._decoder.copy_blocks(*self._upload([sources, destinations]))

    def _compute(self, step: LaunchedStep) -> None:
        items = step.plan.items
        for item in items:
            self._states[item.seq_id].advance(item)
        batch = build_batch(items, self._states, self._block_size, self._device, self._decoder.windows)
        self._fill_pending(items, batch)
        forward = self._graphs.forward if self._graphs.takes(batch.paged) else self._decoder.forward
        stream = forward(batch.ids, *batch.groups)
        for item, start in zip(items, batch.row_starts, strict=True):
            rows = stream[start : start + len(item.token_ids)]
            step.prompt_logprobs.append(self._prompt_logprobs(step, item, rows))
            step.vectors.append(self._vector(step, item, rows))
        self._sample(step, batch.row_starts, stream)

    def _fill_pending(self, items: list[PlanItem], batch: ForwardBatch) -> None:
        """Put the tokens that the last step drew where the plan could not know them."""
        pending = [index for index, item in enumerate(items) if item.token_ids[0] == PENDING]
        if not pending:
            return
        assert self._drawn is not None, "a token is due that was not drawn"
        sources = np.array([self._drawn_rows[items[index].seq_id] for index in pending], np.int64)
        rows = np.array([batch.row_starts[index] for index in pending], np.int64)
        taken, places = self._upload([sources, rows])
        # A choice that drew no token has ended; any will do for it.
        batch.ids.index_copy_(0, places, self._drawn.index_select(0, taken).clamp(min=0))

    def _sample(self, step: LaunchedStep, row_starts: list[int], stream: torch.Tensor) -> None:
        """Draw for the items that sample; logits only for rows that do, a bounded number at a time."""
        plan = step.plan
        sources: list[int] = []  # row of the stream that each sample is drawn from
        rows: list[SamplingRow] = []
        for place, (item, start) in enumerate(zip(plan.items, row_starts, strict=True)):
            for choice in item.choices:
                step.places.append(place)
                sources.append(start + len(item.token_ids) - 1)
                rows.append(self._states[item.seq_id].sampling_row(item, choice, plan.masks.get(item.seq_id)))
        for first in range(0, len(rows), self._slice_rows):
            part = slice(first, first + self._slice_rows)
            options = [self._states[plan.items[place].seq_id].new.logprobs for place in step.places[part]]
            logits = self._logits(stream, sources[part])
            step.tokens.append(draw_tokens(self._decoder.ops, logits, rows[part], options, self._upload, step.download))
        self._drawn = torch.cat([part.tokens for part in step.tokens]) if step.tokens else None
        self._drawn_rows = {plan.items[place].seq_id: row for row, place in enumerate(step.places)}

    def _logits(self, stream: torch.Tensor, sources: list[int]) -> torch.Tensor:
        """Logits [len(sources), V] of rows of the stream; a row that several choices share is computed once."""
        index = {source: row for row, source in enumerate(dict.fromkeys(sources))}
        (unique,) = self._upload([np.array(list(index), np.int64)])
        logits = self._decoder.logits(stream.index_select(0, unique))
        if len(index) == len(sources):
            return logits
        (shared,) = self._upload([np.array([index[source] for source in sources], np.int64)])
        return logits.index_select(0, shared)

    def _vector(self, step: LaunchedStep, item: PlanItem, rows: torch.Tensor) -> int | None:
        pooled = self._states[item.seq_id].pooled
        if pooled is None:
            return None
        vector = pooled.add(item, self._decoder.hidden(pooled.needed(rows)))
        return None if vector is None else step.download.add(vector)

    def _prompt_logprobs(self, step: LaunchedStep, item: PlanItem, rows: torch.Tensor) -> list[PendingLogprobs]:
        """Of the item's tokens, each given all before it; the first one needs the previous chunk's last row."""
        state = self._states[item.seq_id]
        params = state.new.prompt_logprobs
        if params is None or state.first_sampled_position is not None:
            return []
        previous, state.last_row = state.last_row, rows[-1].clone()
        contexts, targets = rows[:-1], item.token_ids[1:]
        if previous is not None:
            contexts, targets = torch.cat((previous.unsqueeze(0), contexts)), item.token_ids
        (tokens,) = self._upload([np.array(targets, np.int64)])
        return [self._slice_logprobs(step, *part, params) for part in self._slices(contexts, tokens)]

    def _slices(self, contexts: torch.Tensor, tokens: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        size = self._slice_rows
        firsts = range(0, len(contexts), size)
        return [(contexts[first : first + size], tokens[first : first + size]) for first in firsts]

    def _slice_logprobs(
        self, step: LaunchedStep, contexts: torch.Tensor, tokens: torch.Tensor, params: LogprobParams
    ) -> PendingLogprobs:
        logits = self._decoder.logits(contexts).float()
        return pending_logprobs(logits, tokens, [params] * len(contexts), self._upload, step.download)
