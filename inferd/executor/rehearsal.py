"""Steps that are run before the first request's. The largest that the scheduler may ask for, before the KV pool is
sized: an accelerator's memory is filled to the last share, so what a step takes is measured there and not estimated.
And one of each kind, before the daemon serves: no caller waits for a kernel to be compiled or loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import torch

from inferd.config import SchedulerConfig
from inferd.errors import StartupError
from inferd.request import LogprobParams, SamplingParams
from inferd.step import BlockCopy, NewSequence, PlanItem, StepPlan

# Every buffer of the sampler: a copy of the logits for log probabilities, a sorted one for the filters.
SAMPLING = SamplingParams(temperature=1.0, top_p=0.9)
LOGPROBS = LogprobParams(top_n=1)
GREEDY = SamplingParams(temperature=0.0)
# All that edits logits, each by a kernel of its own.
EDITED = SamplingParams(repetition_penalty=1.1, logit_bias=((0, 1.0),), allowed_token_ids=(0,))


def largest_plan(limits: SchedulerConfig, context: int, block_size: int, has_head: bool = True) -> StepPlan:
    """As many sequences as run at once, of as many tokens as one step takes: prompts, as few as have these tokens, and
    beside them decodes at the end of the longest context, which cut their attention into the most parts. Each draws a
    token if the model can.

    All of them use the same blocks 0, 1, ..: what they compute means nothing.
    """
    num_seqs = max_decodes(limits)
    left = min(limits.max_num_batched_tokens, num_seqs * context) - num_seqs  # beyond a token each
    items, new = [], []
    for seq_id in range(num_seqs):
        length = 1 + min(left, context - 1)
        left -= length - 1
        choices = (0,) if has_head else ()
        item, sequence = _prompt(seq_id, length, block_size) if length > 1 else _decode(seq_id, context, block_size)
        items.append(msgspec.structs.replace(item, choices=choices))
        new.append(sequence)
    return StepPlan(0, items, new)


def decode_plan(limits: SchedulerConfig, context: int, block_size: int) -> StepPlan:
    """The forward pass of the largest step of decodes, as a graph holds it: nothing is drawn."""
    rows = [_decode(seq_id, context, block_size) for seq_id in range(max_decodes(limits))]
    return StepPlan(0, [item for item, _ in rows], [sequence for _, sequence in rows])


def max_decodes(limits: SchedulerConfig) -> int:
    return min(limits.max_num_seqs, limits.max_num_batched_tokens)


def _prompt(seq_id: int, length: int, block_size: int) -> tuple[PlanItem, NewSequence]:
    blocks = list(range(-(-length // block_size)))
    return PlanItem(seq_id, 0, [0] * length, [], ()), _rehearsed(seq_id, blocks)


def _decode(seq_id: int, context: int, block_size: int) -> tuple[PlanItem, NewSequence]:
    """The last token of a context that lies in one block, over and over."""
    return PlanItem(seq_id, context - 1, [0], [], ()), _rehearsed(seq_id, [0] * -(-context // block_size))


def _rehearsed(seq_id: int, blocks: list[int]) -> NewSequence:
    return NewSequence(seq_id, blocks, SAMPLING, LOGPROBS, None, [], 0, 0, ())


def warm_up_plans(limits: SchedulerConfig, context: int, block_size: int) -> Iterator[StepPlan]:
    """Prompts of 1, 2, 4, .. tokens, as many as a step may take, each beside a decoding sequence where two may run;
    then a token that is drawn from edited logits, after a block was copied.

    On an H100 the first such step took 0.75 s without them, most of it compiling the kernel of short contexts. All
    write the same blocks 0, 1, ..: what they compute means nothing. Nothing is left of them.
    """
    longest = min(limits.max_num_batched_tokens - 1, context)
    sizes = [1 << power for power in range(longest.bit_length())]
    neighbours = [0] if limits.max_num_seqs > 1 else []
    items = [PlanItem(seq_id, 0, [0], [], (0,)) for seq_id in neighbours]
    yield StepPlan(0, items, [_sequence(seq_id, len(sizes) + 1, block_size, GREEDY) for seq_id in neighbours])
    for number, size in enumerate(sizes, 1):
        items = [PlanItem(seq_id, number, [0], [], (0,)) for seq_id in neighbours]
        prompt = PlanItem(number, 0, [0] * size, [], (0,))
        dropped = [number - 1] if number > 1 else []
        yield StepPlan(number, [*items, prompt], [_sequence(number, size, block_size, SAMPLING)], dropped=dropped)
    last = len(sizes) + 1
    edited = NewSequence(last, [0], EDITED, LOGPROBS, None, [0], 0, 0, ())
    copies = [BlockCopy(last, 0, 0, 1)] if context > block_size else []  # else there may be one block, and no copy
    dropped = [*neighbours, len(sizes)] if sizes else neighbours
    yield StepPlan(last, [PlanItem(last, 0, [0], [], (0,))], [edited], copies, dropped)
    yield StepPlan(last + 1, [], dropped=[last])


def _sequence(seq_id: int, length: int, block_size: int, sampling: SamplingParams) -> NewSequence:
    return NewSequence(seq_id, list(range(-(-length // block_size))), sampling, None, None, [], 0, 0, ())


def for_groups(plan: StepPlan, num_groups: int) -> StepPlan:
    """One of these plans for a model with so many cache groups, which all use the same blocks."""
    replace = msgspec.structs.replace
    new = [replace(each, block_ids=[block for block in each.block_ids for _ in range(num_groups)]) for each in plan.new]
    return replace(plan, new=new)


def num_blocks(plan: StepPlan) -> int:
    return max(block for new in plan.new for block in new.block_ids) + 1


def measure_step(device: torch.device, plan: StepPlan, execute: Callable[[StepPlan], object]) -> int:
    """Bytes of the accelerator's memory that executing `plan` takes and gives back.

    What it keeps, such as the buffers of the collectives, is no longer free afterwards. Raises StartupError.
    """
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    try:
        execute(plan)
        torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise StartupError(
            f"{device} has too little memory for a step of {plan.num_tokens} tokens and {len(plan.items)} sequences: "
            f"lower --max-num-batched-tokens or --max-num-seqs"
        ) from None
    peak = torch.cuda.max_memory_reserved(device) - before
    torch.cuda.empty_cache()
    return peak
