"""What all replies share: the head, usage, finish reasons."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.errors import ApiError

FINISH = {
    pb.FINISH_REASON_EOS: "stop",
    pb.FINISH_REASON_STOP_TOKEN: "stop",
    pb.FINISH_REASON_STOP_STRING: "stop",
    pb.FINISH_REASON_MAX_TOKENS: "length",
    pb.FINISH_REASON_CONTEXT_FULL: "length",
    pb.FINISH_REASON_TIME_LIMIT: "length",
}
DONE = b"data: [DONE]\n\n"
ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
BLANK = "\0"


@dataclass(frozen=True)
class Head:
    """The same in every chunk of a reply."""

    reply_id: str
    kind: str  # the `object` field
    model: str
    fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self) -> dict[str, Any]:
        return {
            "id": self.reply_id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def chunk(self, rest: dict[str, Any]) -> bytes:
        """One server-sent event: the head, encoded once, and what is new."""
        return f"{self._start}{ENCODER.encode(rest)[1:]}\n\n".encode()

    @cached_property
    def _start(self) -> str:
        return f"data: {ENCODER.encode(self.fields())[:-1]},"


class TextChunks:
    """Events that differ in their choice and its text alone, which nearly all do: a choice's are encoded once."""

    def __init__(self, head: Head, rest: Callable[[int, str], dict[str, Any]]) -> None:
        """rest: what a chunk has besides the head, of the choice's index and the text."""
        self._head = head
        self._rest = rest
        self._frames: dict[int, tuple[str, str]] = {}

    def event(self, index: int, text: str) -> bytes:
        before, after = self._frames.get(index) or self._frame(index)
        return f"{before}{ENCODER.encode(text)}{after}".encode()

    def _frame(self, index: int) -> tuple[str, str]:
        before, _, after = self._head.chunk(self._rest(index, BLANK)).decode().rpartition(ENCODER.encode(BLANK))
        self._frames[index] = before, after
        return before, after


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {ENCODER.encode(value)}\n\n".encode()


def named_event(name: str, value: dict[str, Any]) -> bytes:
    """One server-sent event with its type, as Responses and Messages have them."""
    return f"event: {name}\ndata: {ENCODER.encode({'type': name, **value})}\n\n".encode()


def usage_of(usages: list[common_pb2.Usage], reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Over the prompts of one call. reasoning_tokens: None when nothing is split, or they cannot be counted."""
    prompt = sum(usage.prompt_tokens for usage in usages)
    completion = sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.cached_prompt_tokens for usage in usages)
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    if reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


def finish_reason(finish: pb.Finish) -> str:
    """Raises ApiError for a choice that somebody else ended: half an answer is no answer."""
    if finish.reason not in FINISH:
        raise ApiError(503, "The request was aborted by the server.", error_type="server_error", code="aborted")
    return FINISH[finish.reason]


def stop_reason(finish: pb.Finish) -> str | int | None:
    """vLLM's field: which stop string or stop token it was."""
    if finish.reason == pb.FINISH_REASON_STOP_STRING:
        return finish.stop_string
    return finish.stop_token_id if finish.reason == pb.FINISH_REASON_STOP_TOKEN else None


@dataclass
class ChoiceText:
    """One choice of a reply that is sent whole."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    finish: pb.Finish | None = None

    def add(self, delta: pb.ChoiceDelta, text: str) -> None:
        self.text += text
        self.token_ids += delta.token_ids
        if delta.HasField("finish"):
            self.finish = delta.finish
