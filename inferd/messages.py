"""What crosses the socket between the front and the engine core, and nothing else: msgpack, typed, bounded.

A frame is a 4-byte big-endian length and that many bytes of msgpack, one message of the tagged union below.
"""

from __future__ import annotations

import struct
from typing import Literal, TypeAlias

import msgspec

from inferd.config import EngineConfig
from inferd.request import FinishReason, Request
from inferd.step import RankTimings, TokenLogprobs

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER = struct.Struct(">I")

# Why a choice failed in the core; the front has an error of inferd.errors for each.
Failure = Literal[
    "INVALID_PARAMETER",
    "CONTEXT_LENGTH_EXCEEDED",
    "INVALID_CONSTRAINT",
    "CONSTRAINT_FAILED",
    "QUEUE_TIMEOUT",
    "DEADLINE_EXCEEDED",
    "NUMERIC_ERROR",
    "INTERNAL",
]


class AddRequest(msgspec.Struct, frozen=True, tag="add"):
    request: Request


class AbortChoice(msgspec.Struct, frozen=True, tag="abort"):
    """Stop one choice, or all of them (choice None). No output follows for what is stopped."""

    key: int
    choice: int | None = None


class ClearPrefixCache(msgspec.Struct, frozen=True, tag="clear"):
    token: int
    salt: str | None = None


class Vocabulary(msgspec.Struct, frozen=True, tag="vocabulary"):
    """What constraints are matched against: the bytes of every token, empty for ids that no text has.

    Control tokens end a text (eos_token_ids) or stand in none unless a grammar names them (special_token_ids).
    """

    token_bytes: list[bytes]
    eos_token_ids: list[int]
    special_token_ids: list[int]


class DumpState(msgspec.Struct, frozen=True, tag="dump"):
    token: int
    include_tokens: bool = False


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """Leave at once; draining is the front's business."""


class Phase(msgspec.Struct, frozen=True, tag="phase"):
    """Start-up progress. fraction is of this phase, 0 to 1."""

    name: str
    fraction: float
    elapsed_s: float


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The core serves from now on; max_context_tokens is what fits the model and the KV pool."""

    max_context_tokens: int
    num_blocks: int
    block_size: int
    vocab_size: int
    architecture: str
    dtype: str
    quantization: str
    backends: dict[str, str]
    weight_bytes: int
    kv_bytes: int
    phases: dict[str, float]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The core cannot start (caller's fault: one readable line)."""

    message: str


class PromptOutput(msgspec.Struct, frozen=True, array_like=True):
    """Sent once per request, with its first output."""

    num_cached_tokens: int
    queue_s: float
    prefill_s: float
    prompt_logprobs: list[TokenLogprobs]
    vector: bytes = b""  # as in SequenceResult


class ChoiceOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one step gave one choice."""

    key: int
    choice: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs]
    finish: FinishReason | None = None
    error: Failure | None = None
    prompt: PromptOutput | None = None
    prefilled: int = 0  # prompt tokens computed so far, where the request asked; then there is nothing else
    guessed: int = 0  # tokens that the step checked
    accepted: int = 0  # those among token_ids


class EngineStats(msgspec.Struct, frozen=True, array_like=True):
    """Gauges now, and totals since the core started."""

    running: int
    waiting: int
    waiting_prompt_tokens: int
    blocks_used: int  # referenced by live sequences
    blocks_total: int
    steps: int
    step_tokens: int  # of the last step
    preemptions: int
    prefix_queries: int  # in tokens
    prefix_hits: int
    computed_tokens: int
    last_step_s: float
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0


class StepOutputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Everything one step produced, for all requests. ranks comes now and then, where there are several workers."""

    outputs: list[ChoiceOutput]
    stats: EngineStats
    ranks: list[RankTimings] = []


class PrefixCacheCleared(msgspec.Struct, frozen=True, tag="cleared"):
    token: int
    blocks_freed: int


class StateDump(msgspec.Struct, frozen=True, tag="state"):
    token: int
    sections: dict[str, bytes]  # name -> JSON


ToCore: TypeAlias = AddRequest | AbortChoice | Vocabulary | ClearPrefixCache | DumpState | Shutdown
ToFront: TypeAlias = Phase | Ready | Failed | StepOutputs | PrefixCacheCleared | StateDump

_encoder = msgspec.msgpack.Encoder()


def encode_frame(message: ToCore | ToFront | EngineConfig) -> bytes:
    """One frame. Raises ValueError when the message is larger than MAX_FRAME_BYTES."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"message of {len(payload)} bytes, at most {MAX_FRAME_BYTES} fit a frame")
    return HEADER.pack(len(payload)) + payload


class FrameDecoder:
    """Bytes in any cut -> messages of one union, each validated against its type.

    feed raises ValueError (msgspec.ValidationError included) for anything that is no such frame.
    """

    def __init__(self, union: object) -> None:
        self._decode = msgspec.msgpack.Decoder(union).decode
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[object]:
        self._buffer += data
        messages, offset = [], 0
        while len(self._buffer) - offset >= HEADER.size:
            (length,) = HEADER.unpack_from(self._buffer, offset)
            if length > MAX_FRAME_BYTES:
                raise ValueError(f"frame of {length} bytes, at most {MAX_FRAME_BYTES} are allowed")
            end = offset + HEADER.size + length
            if len(self._buffer) < end:
                break
            messages.append(self._decode(self._buffer[offset + HEADER.size : end]))
            offset = end
        del self._buffer[:offset]
        return messages
