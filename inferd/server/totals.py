"""Usage and timing of a batch, summed over its inputs."""

from __future__ import annotations

import time
from collections.abc import Sequence

from inferd.front.output import OutputDelta
from inferd.server.convert_response import microseconds
from inferd.v1 import common_pb2


def usage_of(deltas: Sequence[OutputDelta]) -> common_pb2.Usage:
    usages = [delta.usage for delta in deltas if delta.usage is not None]
    return common_pb2.Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_prompt_tokens=sum(usage.cached_prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )


def timing_of(deltas: Sequence[OutputDelta], started: float) -> common_pb2.Timing:
    """The longest wait and the longest computation of an input; `started`: when the batch came, monotonic seconds."""
    timings = [delta.timing for delta in deltas if delta.timing is not None]
    return common_pb2.Timing(
        queue_us=microseconds(max((timing.queue_s for timing in timings), default=0.0)),
        prefill_us=microseconds(max((timing.prefill_s for timing in timings), default=0.0)),
        total_us=microseconds(time.monotonic() - started),
    )
