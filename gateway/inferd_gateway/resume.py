"""What a generation has delivered, and the request that goes on from there when its stream breaks.

The daemon's own restart of a dead engine is not seen here; this is for a daemon that dies, or a connection that breaks.
Greedy and seeded streams continue exactly as they would have, since noise depends on (seed, choice, position) alone.
"""

from __future__ import annotations

import random
import time

import grpc

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.errors import details_of

RETRIES = 3
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0
# A caller that was shown nothing yet is told to come back later rather than kept waiting longer than this.
LONGEST_WAIT_S = 0.5
# One that reads an answer waits for a daemon to restart and load its model.
RESUME_S = 30.0


def backoff(attempt: int) -> float:
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0**attempt) * random.uniform(0.75, 1.25)


def may_retry(error: grpc.aio.AioRpcError, attempt: int) -> bool:
    """Whether a call that has shown nothing yet may be made again, soon."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE or attempt >= RETRIES:
        return False
    wait = details_of(error).retry_after_s
    return wait is None or wait <= LONGEST_WAIT_S


def retry_id(request_id: str, attempt: int) -> str:
    """The id of a further attempt. Not that of the first: a daemon that has not noticed a lost connection still runs
    that one, and would refuse a second request of the same id."""
    return f"{request_id}.r{attempt}"


class Progress:
    """One generation over as many streams as it takes."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._request = request
        self._prompt_ids: list[int] = []
        self._received: list[int] = []
        self._started = False
        self._opening = True  # the stream has not told of the prompt, as it does with the first tokens
        self._finished = False
        self._attempt = 0  # since the last message
        self._attempts = 0  # beyond the first
        self._resumed = False
        self._broken_at = 0.0
        # The ids of several choices do not fit into one prompt, and a final message is all or nothing.
        self._resumable = request.num_choices <= 1 and request.stream.mode == pb.STREAM_MODE_DELTAS
        if self._resumable:
            request.output.token_ids = True
            request.output.prompt_token_ids = True

    def seen(self, message: pb.GenerateResponse) -> pb.GenerateResponse:
        """The message as a reader of one unbroken stream expects it."""
        self._started, self._attempt = True, 0
        if not self._resumable:
            return message
        if self._opening and message.HasField("prompt"):
            self._open(message)
        for delta in message.choices[:]:  # slices: iterating over the field itself is slow
            self._received += delta.token_ids[:]
            if delta.HasField("finish"):
                self._finished = True
        if self._resumed and self._prompt_ids and message.HasField("usage"):
            message.usage.prompt_tokens = len(self._prompt_ids)
            message.usage.completion_tokens = len(self._received)
        return message

    def _open(self, message: pb.GenerateResponse) -> None:
        self._opening = False
        if self._received:
            message.ClearField("prompt")
        else:
            self._prompt_ids = message.prompt.token_ids[:]

    def may_go_on(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether to try again after `error`; call pause() and next_request() then."""
        if not self._started:
            return may_retry(error, self._attempt)
        if (
            error.code() is not grpc.StatusCode.UNAVAILABLE
            or self._finished
            or not (self._resumable and self._prompt_ids)
        ):
            return False
        if self._attempt == 0:
            self._broken_at = time.monotonic()
        return time.monotonic() - self._broken_at < RESUME_S

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        self._attempt += 1
        self._attempts += 1
        return backoff(self._attempt - 1)

    def next_request(self) -> pb.GenerateRequest:
        """The original, or what is left of it."""
        if not self._attempts:
            return self._request
        request = pb.GenerateRequest()
        request.CopyFrom(self._request)
        request.request_id = retry_id(self._request.request_id, self._attempts)
        if not self._started:
            return request
        self._opening = self._resumed = True
        ids = common_pb2.TokenIds(ids=self._prompt_ids + self._received)
        request.prompt.CopyFrom(common_pb2.Prompt(token_ids=ids))
        request.resumed_tokens = len(self._received)
        request.output.ClearField("prompt_logprobs")
        request.output.ClearField("prompt_text")
        request.ClearField("truncation")
        request.ClearField("queue_timeout")
        return request
