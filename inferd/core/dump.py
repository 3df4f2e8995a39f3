"""What a state dump says, as JSON sections. Made on the reader thread, while the loop may be stuck in a step: it only
looks, and each value is one that was true at some moment of the dump."""

from __future__ import annotations

import sys
import threading
import traceback

import msgspec

from inferd.scheduler.scheduler import Scheduler
from inferd.sequence import Sequence


def describe(scheduler: Scheduler | None, include_tokens: bool) -> dict[str, bytes]:
    """Sections scheduler, sequences, blocks (once there is a scheduler) and threads."""
    sections: dict[str, object] = {"threads": describe_threads()}
    if scheduler is not None:
        stats = msgspec.structs.asdict(scheduler.stats())
        limits = scheduler.limits
        sections["scheduler"] = stats | {
            "token_budget": limits.token_budget,
            "seats": limits.seats,
            "chunked_prefill": limits.chunked_prefill,
            "max_context": limits.max_context,
        }
        sections["sequences"] = [describe_sequence(each, include_tokens) for each in scheduler.sequences()]
        sections["blocks"] = {
            "total": stats["blocks_total"],
            "used": stats["blocks_used"],
            "cached": scheduler.num_cached_blocks(),
        }
    return {name: msgspec.json.encode(section) for name, section in sections.items()}


def describe_sequence(sequence: Sequence, include_tokens: bool) -> dict[str, object]:
    request = sequence.request
    fields: dict[str, object] = {
        "seq_id": sequence.seq_id,
        "key": request.key,
        "request_id": request.request_id,
        "choices": sequence.choices,
        "status": sequence.status.value,
        "priority": request.priority,
        "arrival": request.arrival,
        "deadline": request.deadline,
        "prompt_tokens": sequence.num_prompt_tokens,
        "tokens": sequence.num_tokens,
        "computed_tokens": sequence.num_computed_tokens,
        "cached_tokens": sequence.num_cached_tokens,
        "blocks": len(sequence.block_ids),
        "preemptions": sequence.num_preemptions,
    }
    return fields | {"token_ids": list(sequence.token_ids)} if include_tokens else fields


def describe_threads() -> dict[str, list[str]]:
    """The stack of every thread, outermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": traceback.format_stack(frame)
        for ident, frame in sys._current_frames().items()
    }
