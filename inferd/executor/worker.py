"""Owns one device's part of a model, its KV memory and the sequence states; turns a StepPlan into a StepResult.

The same class for one worker and for many; schedules nothing."""

from __future__ import annotations

import time

import torch

from inferd.allocator import drop_pages, return_freed_memory
from inferd.executor.batch import ForwardBatch, build_batch
from inferd.executor.memory import rows_per_slice
from inferd.executor.pooling import float32_bytes
from inferd.executor.sequence_state import SequenceState, apply_changes
from inferd.models.model import Model
from inferd.parallel.context import ParallelContext
from inferd.request import LogprobParams
from inferd.sampling.adjust import SamplingRow
from inferd.sampling.logprobs import token_logprobs
from inferd.sampling.sampler import sample_tokens
from inferd.sampling.sharded import VocabShard, sample_sharded, sharded_logprobs
from inferd.step import BlockCopy, PlanItem, SampledToken, SequenceResult, StepPlan, StepResult, TokenLogprobs


class Worker:
    def __init__(
        self, decoder: Model, block_size: int, device: torch.device, context: ParallelContext | None = None
    ) -> None:
        self._decoder = decoder
        self._block_size = block_size
        self._device = device
        self._context = context or ParallelContext()
        self._states: dict[int, SequenceState] = {}
        self._slice_rows = rows_per_slice(decoder.spec.vocab_size)
        self._vocab = VocabShard(decoder.weights.first_token, decoder.spec.vocab_size, decoder.group)

    @property
    def waited_s(self) -> float:
        """Seconds spent on peers so far."""
        return self._context.waited_s

    @torch.inference_mode()
    def expect(self, plan: StepPlan) -> None:
        """plan will be executed, after those that were expected before: post its receive, on whatever thread.

        The thread of the stage before then writes the data itself. A send that finds no receive waits for a thread of
        gloo's, which on a machine with as many stages as cores took milliseconds. An accelerator's launches belong to
        one thread, so there a receive is posted when its step begins.
        """
        if self._device.type == "cpu" and plan.items and not self._context.placement.is_first_stage:
            self._expect(plan.num_tokens)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Apply dropped, new and copies, then compute the items.

        On the last pipeline stage the results are in the order of plan.items; on others there are none.
        """
        started = time.perf_counter()
        apply_changes(self._states, plan)
        self._copy_blocks(plan.copies)
        results = self._compute(plan) if plan.items else []
        return StepResult(plan.step, results, time.perf_counter() - started)

    def give_back(self, blocks: list[tuple[int, int]]) -> None:
        """Return the memory of blocks [first, end) to the system, in every layer, and what steps keep to work in; what
        the blocks held is lost."""
        self._decoder.ops.release()
        return_freed_memory()
        for cache in self._decoder.pools:
            for tensor in cache.tensors:
                size = tensor.stride(0) * tensor.element_size()
                for first, end in blocks:
                    drop_pages(tensor.data_ptr() + first * size, (end - first) * size)

    def _copy_blocks(self, copies: list[BlockCopy]) -> None:
        if not copies:
            return
        sources = torch.tensor([copy.source for copy in copies], device=self._device)
        destinations = torch.tensor([copy.destination for copy in copies], device=self._device)
        self._decoder.copy_blocks(sources, destinations)

    def _compute(self, plan: StepPlan) -> list[SequenceResult]:
        items = plan.items
        for item in items:
            self._states[item.seq_id].advance(item)
        batch = build_batch(items, self._states, self._block_size, self._device, self._decoder.windows)
        stream = self._decoder.run(self._entering(batch), *batch.groups)
        if not self._context.placement.is_last_stage:
            assert self._context.link is not None, "stages without a link"
            self._context.link.send(stream)
            return []
        starts = list(zip(items, batch.row_starts, strict=True))
        prompt_logprobs = [self._prompt_logprobs(item, stream, start) for item, start in starts]
        vectors = [self._vector(item, stream, start) for item, start in starts]
        samples = self._sample(plan, batch.row_starts, stream)
        return [
            SequenceResult(item.seq_id, samples[index], prompt_logprobs[index], vectors[index])
            for index, item in enumerate(items)
        ]

    def _vector(self, item: PlanItem, stream: torch.Tensor, start: int) -> bytes:
        """The item's rows of the stream begin at start."""
        pooled = self._states[item.seq_id].pooled
        if pooled is None:
            return b""
        rows = stream[start : start + len(item.token_ids)]
        vector = pooled.add(item, self._decoder.hidden(pooled.needed(rows)))
        return b"" if vector is None else float32_bytes(vector)

    def _entering(self, batch: ForwardBatch) -> torch.Tensor:
        """The stream [T, E] that enters this stage's layers."""
        if self._context.placement.is_first_stage:
            return self._decoder.embed(batch.ids, batch.paged)
        assert self._context.link is not None, "stages without a link"
        if not self._context.link.expects:
            self._expect(len(batch.ids))
        return self._context.link.receive()

    def _expect(self, num_tokens: int) -> None:
        assert self._context.link is not None, "stages without a link"
        shape = (num_tokens, self._decoder.spec.hidden_size)
        self._context.link.expect(torch.empty(shape, dtype=self._decoder.dtype, device=self._device))

    def _sample(self, plan: StepPlan, row_starts: list[int], stream: torch.Tensor) -> list[list[SampledToken]]:
        """The samples of each item; logits only for rows that sample, a bounded number at a time."""
        items = plan.items
        places: list[int] = []  # item of each sample
        sources: list[int] = []  # row of the stream it is drawn from
        rows: list[SamplingRow] = []
        for place, (item, start) in enumerate(zip(items, row_starts, strict=True)):
            state = self._states[item.seq_id]
            for choice in item.choices:
                for back in range(item.guesses, -1, -1):
                    places.append(place)
                    sources.append(start + len(item.token_ids) - 1 - back)
                    rows.append(state.sampling_row(item, choice, plan.masks.get(item.seq_id), back))
        samples: list[list[SampledToken]] = [[] for _ in items]
        for first in range(0, len(rows), self._slice_rows):
            part = slice(first, first + self._slice_rows)
            options = [self._states[items[place].seq_id].new.logprobs for place in places[part]]
            logits = self._logits(stream, sources[part])
            if self._vocab.is_whole:
                tokens = sample_tokens(self._decoder.ops, logits, rows[part], options)
            else:
                tokens = sample_sharded(self._decoder.ops, logits, rows[part], options, self._vocab)
            for place, token in zip(places[part], tokens, strict=True):
                samples[place].append(token)
        return samples

    def _logits(self, stream: torch.Tensor, sources: list[int]) -> torch.Tensor:
        """Logits [len(sources), V] of rows of the stream; a row that several choices share is computed once."""
        unique = list(dict.fromkeys(sources))
        first, last = unique[0], unique[-1]
        if unique == list(range(first, last + 1)):  # as in a step of decodes alone
            rows = stream[first : last + 1]
        else:
            rows = stream[torch.tensor(unique, device=self._device)]
        logits = self._decoder.logits(rows)
        if len(unique) == len(sources):
            return logits
        index = {source: row for row, source in enumerate(unique)}
        return logits[torch.tensor([index[source] for source in sources], device=self._device)]

    def _prompt_logprobs(self, item: PlanItem, stream: torch.Tensor, start: int) -> list[TokenLogprobs]:
        """Of the item's tokens, each given all before it; the first one needs the previous chunk's last row. The item's
        rows of the stream begin at start."""
        state = self._states[item.seq_id]
        params = state.new.prompt_logprobs
        if params is None or state.first_sampled_position is not None:
            return []
        rows = stream[start : start + len(item.token_ids)]
        previous, state.last_row = state.last_row, rows[-1].clone()
        contexts, targets = rows[:-1], item.token_ids[1:]
        if previous is not None:
            contexts, targets = torch.cat((previous.unsqueeze(0), contexts)), item.token_ids
        return self._logprobs_in_slices(contexts, torch.tensor(targets, device=self._device), params)

    def _logprobs_in_slices(
        self, contexts: torch.Tensor, targets: torch.Tensor, params: LogprobParams
    ) -> list[TokenLogprobs]:
        result: list[TokenLogprobs] = []
        for first in range(0, len(contexts), self._slice_rows):
            rows = contexts[first : first + self._slice_rows]
            logits = self._decoder.logits(rows).float()
            tokens, options = targets[first : first + len(rows)], [params] * len(rows)
            if self._vocab.is_whole:
                result += token_logprobs(logits, tokens, options)
            else:
                result += sharded_logprobs(logits, tokens, options, self._vocab)
        return result
