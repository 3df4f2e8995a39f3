"""Inputs of Embed and Score: token ids with the tokenizer's special tokens in place, cut to what fits, as requests."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from inferd.config import InferdConfig
from inferd.errors import ContextLengthExceeded, InvalidParameter
from inferd.front.engine import FrontEngine
from inferd.front.output import OutputDelta
from inferd.request import CacheParams, PoolingParams, Request, SamplingParams, StopParams, Tenant
from inferd.server.fields import check_at_most, check_count
from inferd.server.served_model import ServedModel
from inferd.server.text_pool import TextPool
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2

GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class Serving:
    """What the handlers of one daemon share."""

    config: InferdConfig
    model: ServedModel
    front: FrontEngine
    pool: TextPool

    @property
    def vocab_size(self) -> int:
        ready = self.front.ready
        assert ready is not None, "check_serving() comes first"
        return min(self.model.tokenizer.vocab_size, ready.vocab_size)

    @property
    def max_context_tokens(self) -> int:
        ready = self.front.ready
        assert ready is not None, "check_serving() comes first"
        return ready.max_context_tokens


@dataclass(frozen=True, slots=True)
class Caller:
    """What a call, or an item of a bulk stream, adds to its message. deadline: CLOCK_MONOTONIC seconds."""

    request_id: str
    deadline: float
    tenant: Tenant
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Room:
    """How long an input may be, and what happens to a longer one."""

    tokens: int
    truncation: int  # common_pb2.Truncation
    field: str = "inputs"

    def cut(self, ids: list[int], prefix: tuple[int, ...], suffix: tuple[int, ...]) -> list[int]:
        """At most `tokens` ids; a prefix and suffix of special tokens that are there stay there.

        Raises ContextLengthExceeded unless truncation was asked for, InvalidParameter when nothing else would fit.
        """
        if len(ids) <= self.tokens:
            return ids
        self.check_truncates(len(ids))
        head = len(prefix) if tuple(ids[: len(prefix)]) == prefix else 0
        tail = len(suffix) if suffix and tuple(ids[-len(suffix) :]) == suffix else 0
        keep = self.content(head + tail)
        start, end = head, len(ids) - tail
        inner = ids[end - keep : end] if self.keeps_end else ids[start : start + keep]
        return [*ids[:head], *inner, *ids[len(ids) - tail :]]

    @property
    def keeps_end(self) -> bool:
        return self.truncation == common_pb2.TRUNCATION_KEEP_END

    def content(self, specials: int) -> int:
        """Tokens left beside the special ones."""
        if self.tokens <= specials:
            raise InvalidParameter(
                f"max_tokens is {self.tokens}, and {specials} special tokens alone take that", field="max_tokens"
            )
        return self.tokens - specials

    def check_truncates(self, length: int) -> None:
        if self.truncation in (common_pb2.TRUNCATION_KEEP_START, common_pb2.TRUNCATION_KEEP_END):
            return
        raise ContextLengthExceeded(
            f"an input has {length} tokens, at most {self.tokens} are taken",
            field=self.field,
            metadata={"prompt_tokens": str(length), "max_context_tokens": str(self.tokens)},
        )


def room_of(pb: inference_pb2.EmbedRequest | inference_pb2.ScoreRequest, limit: int, field: str) -> Room:
    """The room that `limit` and the request's own max_tokens leave."""
    if not pb.HasField("max_tokens"):
        return Room(limit, pb.truncation, field)
    check_at_most("max_tokens", pb.max_tokens, 2**32 - 1, low=1)
    unset = pb.truncation == common_pb2.TRUNCATION_UNSPECIFIED
    truncation = common_pb2.TRUNCATION_KEEP_START if unset and pb.max_tokens <= limit else pb.truncation
    return Room(min(pb.max_tokens, limit), truncation, field)


def check_batch(field: str, count: int, serving: Serving) -> None:
    """At least one entry, and no more than a batch may have."""
    if not count:
        raise InvalidParameter(f"{field} is empty", field=field)
    check_count(field, range(count), serving.config.server.limits.max_batch_inputs)


def cut_pair(first: list[int], second: list[int], room: Room, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """(ids of the pair as BERT takes it, where the second text begins): [CLS] first [SEP] second [SEP].

    Too long a pair loses tokens of its longer text; once both are as long, of both alike.
    """
    specials = len(tokenizer.prefix) + 2 * len(tokenizer.suffix)
    if len(first) + len(second) + specials > room.tokens:
        room.check_truncates(len(first) + len(second) + specials)
        content = room.content(specials)
        shorter = min(len(first), len(second), content // 2)
        longer = content - shorter
        sizes = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
        first, second = (
            ids[len(ids) - size :] if room.keeps_end and size < len(ids) else ids[:size]
            for ids, size in zip((first, second), sizes, strict=True)
        )
    head = [*tokenizer.prefix, *first, *tokenizer.suffix]
    return [*head, *second, *tokenizer.suffix], len(head)


def pooled_requests(
    serving: Serving, caller: Caller, inputs: Sequence[list[int]], params: Sequence[PoolingParams]
) -> list[Request]:
    """One request per input. A mean needs every position computed: it reads no cached prefix."""
    return [
        msgspec.structs.replace(
            plain_request(serving, caller, index, ids, StopParams(max_tokens=0)),
            pooling=one,
            cache=CacheParams(read=one.kind != "mean"),
        )
        for index, (ids, one) in enumerate(zip(inputs, params, strict=True))
    ]


def plain_request(serving: Serving, caller: Caller, index: int, ids: list[int], stop: StopParams) -> Request:
    """The greedy request of the index-th input of a batch."""
    now = time.monotonic()
    queue_timeout = serving.config.server.queue_timeout_s
    return Request(
        key=next(serving.front.keys),
        request_id=f"{caller.request_id}/{index}",  # a slash: no caller's own id looks like it
        prompt_token_ids=ids,
        sampling=GREEDY,
        stop=stop,
        tenant=caller.tenant,
        priority=caller.priority,
        arrival=now,
        deadline=caller.deadline,
        queue_deadline=None if queue_timeout is None else now + queue_timeout,
    )


def vector_of(delta: OutputDelta) -> bytes:
    assert delta.prompt is not None
    return delta.prompt.vector
