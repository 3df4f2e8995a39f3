"""What a state dump says, as JSON sections. Made on the reader thread, while the loop may be stuck in a step: it only
looks, and each value is one that was true at some moment of the dump."""

from __future__ import annotations

import sys
import threading
import traceback

import msgspec

from inferd.scheduler.scheduler import Scheduler
from inferd.sequence import Sequence

# A dump is one frame of at most 64 MiB. What is beyond these bounds is counted, not described.
MAX_SEQUENCES = 50_000
MAX_TOKENS = 4_000_000


def describe(scheduler: Scheduler | None, include_tokens: bool) -> dict[str, bytes]:
    """Sections scheduler, sequences, blocks (once there is a scheduler) and threads."""
    sections: dict[str, object] = {"threads": describe_threads()}
    if scheduler is not None:
        stats = msgspec.structs.asdict(scheduler.stats())
        sequences = scheduler.sequences()
        sections["sequences"] = describe_sequences(sequences[:MAX_SEQUENCES], MAX_TOKENS if include_tokens else 0)
        limits = scheduler.limits
        sections["scheduler"] = stats | {
            "token_budget": limits.token_budget,
            "seats": limits.seats,
            "chunked_prefill": limits.chunked_prefill,
            "max_context": limits.max_context,
            "sequences_left_out": max(len(sequences) - MAX_SEQUENCES, 0),
        }
        sections["blocks"] = {
            "total": stats["blocks_total"],
            "used": stats["blocks_used"],
            "cached": scheduler.num_cached_blocks(),
        }
    return {name: msgspec.json.encode(section) for name, section in sections.items()}


def describe_sequences(sequences: list[Sequence], max_tokens: int) -> list[dict[str, object]]:
    """Each sequence; with its tokens as long as all of them together are at most max_tokens."""
    described = []
    for sequence in sequences:
        fields = describe_sequence(sequence)
        if sequence.num_tokens <= max_tokens:
            fields["token_ids"] = token_ids = list(sequence.token_ids)
            max_tokens -= len(token_ids)
        described.append(fields)
    return described


def describe_sequence(sequence: Sequence) -> dict[str, object]:
    request = sequence.request
    return {
        "seq_id": sequence.seq_id,
        "key": request.key,
        "request_id": request.request_id,
        "choices": sequence.choices,
        "status": sequence.status.value,
        "tenant": request.tenant,
        "priority": request.priority,
        "arrival": request.arrival,
        "deadline": request.deadline,
        "prompt_tokens": sequence.num_prompt_tokens,
        "tokens": sequence.num_tokens,
        "computed_tokens": sequence.num_computed_tokens,
        "cached_tokens": sequence.num_cached_tokens,
        "blocks": len(sequence.held_block_ids),
        "preemptions": sequence.num_preemptions,
    }


def describe_threads() -> dict[str, list[str]]:
    """The stack of every thread, outermost call first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        f"{names.get(ident, 'unknown')} ({ident})": traceback.format_stack(frame)
        for ident, frame in sys._current_frames().items()
    }
