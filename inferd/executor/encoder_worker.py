"""Owns one device's encoder; turns a StepPlan of whole inputs into vectors. Keeps nothing between steps but what the
plan announced."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from inferd_kernels.ops import PagedBatch

from inferd.executor.pooling import float32_bytes, pool
from inferd.models.model import Model
from inferd.request import PoolingParams
from inferd.step import PlanItem, SequenceResult, StepPlan, StepResult


@dataclass(frozen=True, slots=True)
class PackedInputs:
    """Whole inputs, one after the other: token ids and segments (0, or 1 in a pair's second text), each [T] int64. The
    batch has neither slots nor block tables, since nothing is cached."""

    ids: torch.Tensor
    types: torch.Tensor
    batch: PagedBatch


class EncoderWorker:
    def __init__(self, encoder: Model, device: torch.device) -> None:
        self._encoder = encoder
        self._device = device
        self._pooling: dict[int, PoolingParams] = {}

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Apply dropped and new, then compute the items, each a whole input; results in the order of plan.items."""
        started = time.perf_counter()
        for seq_id in plan.dropped:
            del self._pooling[seq_id]
        for new in plan.new:
            assert new.pooling is not None, f"sequence {new.seq_id} wants tokens of an encoder"
            self._pooling[new.seq_id] = new.pooling
        vectors = self._vectors(plan.items) if plan.items else []
        results = [
            SequenceResult(item.seq_id, [], [], vector) for item, vector in zip(plan.items, vectors, strict=True)
        ]
        return StepResult(plan.step, results, time.perf_counter() - started)

    def _vectors(self, items: list[PlanItem]) -> list[bytes]:
        params = [self._pooling[item.seq_id] for item in items]
        packed = pack(items, params, self._device)
        states = self._encoder.hidden(self._encoder.forward(packed.ids, packed.batch, token_types=packed.types))
        lengths = [len(item.token_ids) for item in items]
        pooled = [pool(part, one.kind) for part, one in zip(states.split(lengths), params, strict=True)]
        classified = [index for index, one in enumerate(params) if one.kind == "classify"]
        if classified:
            first = torch.stack([pooled[index] for index in classified]).to(states.dtype)
            for index, logits in zip(classified, self._encoder.class_logits(first).float(), strict=True):
                pooled[index] = logits
        return [float32_bytes(vector) for vector in pooled]


def pack(items: list[PlanItem], params: list[PoolingParams], device: torch.device) -> PackedInputs:
    """The tensors of one forward pass, sequences in the order of the items."""
    for item, one in zip(items, params, strict=True):
        assert (item.start, len(item.token_ids)) == (0, one.num_tokens), f"{item} is no whole input of {one}"
    lengths = np.fromiter((len(item.token_ids) for item in items), np.int32, len(items))
    cu_seqlens = np.zeros(len(items) + 1, np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    total = int(cu_seqlens[-1])
    positions = np.arange(total, dtype=np.int64) - np.repeat(cu_seqlens[:-1], lengths)
    # Rows from the second text's first token on are of type 1; without a second text none is.
    seconds = [one.num_tokens if one.second_start is None else one.second_start for one in params]
    types = (positions >= np.repeat(np.array(seconds, np.int64), lengths)).astype(np.int64)
    ids = np.fromiter((token for item in items for token in item.token_ids), np.int64, total)
    arrays = (ids, positions, types, cu_seqlens, lengths)
    ids_, positions_, types_, starts, seq_lens = (
        torch.from_numpy(each).to(device, non_blocking=True) for each in arrays
    )
    nothing = positions_.new_empty(0)
    longest = int(lengths.max(initial=0))
    batch = PagedBatch(positions_, nothing, starts, seq_lens, nothing, 0, longest, longest)
    return PackedInputs(ids_, types_, batch)
