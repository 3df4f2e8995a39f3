"""A model without an executor: the rows of its stream at every position, however the tokens are cut into steps."""

from __future__ import annotations

from collections.abc import Callable

import torch

from inferd.executor.batch import build_batch
from inferd.executor.sequence_state import SequenceState
from inferd.models.model import Model
from inferd.request import SamplingParams
from inferd.step import NewSequence, PlanItem


@torch.inference_mode()
def rows_of_positions(
    decoder: Model, finish: Callable[[torch.Tensor], torch.Tensor], prompts: list[list[int]], chunk: int
) -> list[torch.Tensor]:
    """`finish` of the stream at every position; all prompts in each step, `chunk` tokens of each, block tables
    backwards."""
    states, seen = {}, [0] * len(prompts)
    for index in range(len(prompts)):
        blocks = list(range(63 - index, 0, -len(prompts)))
        states[index] = SequenceState.from_plan(NewSequence(index, blocks, SamplingParams(), None, None, [], 0, 0, ()))
    logits: list[list[torch.Tensor]] = [[] for _ in prompts]
    while any(count < len(prompt) for count, prompt in zip(seen, prompts, strict=True)):
        items = []
        for index, prompt in enumerate(prompts):
            # Different chunk lengths per sequence, so that single-token and longer items meet in one step.
            step = chunk + index if chunk > 1 else chunk
            tokens = prompt[seen[index] : seen[index] + step]
            if tokens:
                items.append(PlanItem(index, seen[index], tokens, [], ()))
                seen[index] += len(tokens)
        batch = build_batch(items, states, 16, torch.device("cpu"))
        rows = finish(decoder.forward(batch.ids, batch.paged))
        for item, start in zip(items, batch.row_starts, strict=True):
            logits[item.seq_id].append(rows[start : start + len(item.token_ids)])
    return [torch.cat(parts) for parts in logits]
