"""Helpers of tests that speak gRPC: requests in short, streams collected and checked, errors decoded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from inferd.request import FinishReason
from inferd.testing.fake_daemon import VOCAB_SIZE
from inferd.testing.fake_executor import solo_tokens
from inferd.v1 import inference_pb2

PROMPT, SEED = "hello", 14  # tokens 2 to 10 of what follows are ASCII


def make_generate(
    prompt: str = PROMPT, *, max_tokens: int | None = 8, seed: int = SEED, **fields: Any
) -> inference_pb2.GenerateRequest:
    """A seeded generation; fields are those of GenerateRequest, messages as dicts."""
    request = inference_pb2.GenerateRequest(
        prompt={"text": prompt}, sampling={"seed": seed}, stop={"max_tokens": max_tokens}
    )
    request.MergeFrom(inference_pb2.GenerateRequest(**fields))
    return request


def expected_tokens(num_tokens: int, *, prompt: str = PROMPT, seed: int = SEED, choice: int = 0) -> list[int]:
    return solo_tokens(list(prompt.encode()), seed, choice, num_tokens, VOCAB_SIZE)


def as_text(token_ids: list[int]) -> str:
    return bytes(token_ids).decode(errors="replace")


@dataclass
class Choice:
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    deltas: list[inference_pb2.ChoiceDelta] = field(default_factory=list)
    finish: inference_pb2.Finish | None = None

    @property
    def reason(self) -> FinishReason:
        assert self.finish is not None
        return FinishReason(self.finish.reason)


def collect(stream: Iterable[inference_pb2.GenerateResponse]) -> dict[int, Choice]:
    """The choices of a complete stream, its grammar checked."""
    messages = list(stream)
    choices: dict[int, Choice] = {}
    for number, message in enumerate(messages):
        first, last = number == 0, number == len(messages) - 1
        assert message.HasField("prompt") == first
        assert bool(message.request_id) == first
        assert message.HasField("timing") == last
        assert message.HasField("usage") or not last
        for delta in message.choices:
            choice = choices.setdefault(delta.index, Choice())
            assert choice.finish is None, "a delta after the finish"
            choice.text += delta.text
            choice.token_ids += delta.token_ids
            choice.deltas.append(delta)
            choice.finish = delta.finish if delta.HasField("finish") else None
    assert choices
    assert all(choice.finish is not None for choice in choices.values())
    total = sum(choice.finish.completion_tokens for choice in choices.values() if choice.finish)
    assert messages[-1].usage.completion_tokens == total
    return choices


@dataclass(frozen=True)
class Failure:
    """A failed call, decoded."""

    code: str
    message: str
    reason: str
    fields: tuple[str, ...]
    retry_s: float | None
    pushback_ms: int | None
    metadata: dict[str, str]
    request_id: str


def decode_failure(error: grpc.RpcError) -> Failure:
    metadata: Any = error.trailing_metadata()  # pairs, whatever the stubs say
    trailers = dict(metadata or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    if status.ByteSize():
        assert (status.code, status.message) == (error.code().value[0], error.details())
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for packed in status.details:
        for detail in (info, bad, retry):
            packed.Unpack(detail)  # does nothing unless the type is the detail's
    pushback = trailers.get("grpc-retry-pushback-ms")
    has_retry = retry.HasField("retry_delay")
    return Failure(
        code=error.code().name,
        message=error.details() or "",
        reason=info.reason,
        fields=tuple(violation.field for violation in bad.field_violations),
        retry_s=retry.retry_delay.ToMilliseconds() / 1e3 if has_retry else None,
        pushback_ms=int(pushback) if pushback is not None else None,
        metadata=dict(info.metadata),
        request_id=str(trailers.get("x-request-id", "")),
    )


def fails(stream: Iterable[Any]) -> Failure:
    """The failure that a stream ends with."""
    try:
        for _ in stream:
            pass
    except grpc.RpcError as error:
        return decode_failure(error)
    raise AssertionError("the call succeeded")
