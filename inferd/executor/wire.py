"""What the engine core and its workers say to each other: frames as in inferd.messages. Loads no torch."""

from __future__ import annotations

import hashlib
import hmac
import os
import platform
import socket
from typing import TypeAlias, TypeVar

import msgspec

from inferd import __version__
from inferd.config import EngineConfig
from inferd.messages import HEADER, MAX_FRAME_BYTES
from inferd.step import StepPlan, StepResult

KEY_VARIABLE = "INFERD_CLUSTER_KEY"  # shared by the machines of a model; whoever joins proves that it has it
HANDSHAKE_BYTES = 16 * 1024  # of a frame from someone who has proved nothing yet, or to them


class Environment(msgspec.Struct, frozen=True):
    """What must be the same wherever ranks of one model run. checkpoint is its fingerprint."""

    inferd: str
    python: str
    torch: str
    checkpoint: str

    def differences(self, other: Environment) -> list[str]:
        """`torch 2.8.0, not 2.9.0` for every field in which `self` is not like `other`."""
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in self.__struct_fields__]
        return [f"{name} {own[:20]}, not {theirs[:20]}" for name, own, theirs in pairs if own != theirs]


class Challenge(msgspec.Struct, frozen=True, tag="challenge"):
    """First frame to whoever connects over the network."""

    nonce: bytes


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """First frame to a worker that was let in. host: this machine's address as its peers reach it.

    num_local ranks of the model share this machine's cores and memory; this one takes accelerator number device_index.
    """

    config: EngineConfig
    rank: int
    device_index: int
    num_local: int
    host: str


class Connect(msgspec.Struct, frozen=True, tag="connect"):
    """All ranks are there and alike: form the groups at this rendezvous, then load."""

    host: str
    port: int


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """The weights of all ranks are in memory: say how much is left. Ranks with an accelerator run a step together."""


class Allocate(msgspec.Struct, frozen=True, tag="allocate"):
    num_blocks: int


class GiveBack(msgspec.Struct, frozen=True, tag="give_back"):
    """See Executor.give_back."""

    blocks: list[tuple[int, int]]


class RunStep(msgspec.Struct, frozen=True, tag="step"):
    plan: StepPlan


class DumpStacks(msgspec.Struct, frozen=True, tag="stacks"):
    """Answered by a thread of its own, whatever the worker is stuck in."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    pass


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """To a node that joined: start these ranks, each of which connects by itself."""

    ranks: list[int]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    message: str


class JoinNode(msgspec.Struct, frozen=True, tag="join_node"):
    """From another machine: it is number `node`, and would start that node's ranks."""

    node: int
    environment: Environment
    proof: bytes


class JoinRank(msgspec.Struct, frozen=True, tag="join_rank"):
    rank: int
    proof: bytes


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """The worker has loaded its libraries and read the checkpoint's headers. rank 0 says where the rendezvous is."""

    environment: Environment
    store_host: str | None = None
    store_port: int | None = None


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    fraction: float


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The weights are in memory."""

    architecture: str
    dtype: str
    quantization: str
    weight_bytes: int
    bytes_read: int
    backends: dict[str, str]
    is_pageable: bool


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """What one KV block takes here, and all of them may take."""

    block_bytes: int
    budget: int


class Allocated(msgspec.Struct, frozen=True, tag="allocated"):
    pass


class StepDone(msgspec.Struct, frozen=True, tag="done"):
    result: StepResult


class StepTime(msgspec.Struct, frozen=True, array_like=True):
    """One step on one rank. Times: CLOCK_MONOTONIC seconds of its machine; wait_s of them were spent on peers."""

    step: int
    began: float
    ended: float
    wait_s: float


class StepTimes(msgspec.Struct, frozen=True, tag="times"):
    times: list[StepTime]


class Stacks(msgspec.Struct, frozen=True, tag="stack_dump"):
    text: str


class RankFailed(msgspec.Struct, frozen=True, tag="failed"):
    """The worker cannot go on. is_startup: the caller's fault, in one readable line."""

    message: str
    is_startup: bool


ToRank: TypeAlias = Challenge | Setup | Connect | Measure | Allocate | GiveBack | RunStep | DumpStacks | Stop | Refused
FromRank: TypeAlias = (
    JoinNode | JoinRank | Hello | Loading | Loaded | Measured | Allocated | StepDone | StepTimes | Stacks | RankFailed
)
ToNode: TypeAlias = Challenge | Welcome | Refused
MessageT = TypeVar("MessageT")

_encoder = msgspec.msgpack.Encoder()


def encode(message: ToRank | FromRank | ToNode) -> bytes:
    """One frame. Raises ValueError when the message is larger than MAX_FRAME_BYTES."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"message of {len(payload)} bytes, at most {MAX_FRAME_BYTES} fit a frame")
    return HEADER.pack(len(payload)) + payload


def frame_length(header: bytes, most: int = MAX_FRAME_BYTES) -> int:
    """Bytes that follow `header`. Raises ValueError when they are more than `most`."""
    (length,) = HEADER.unpack(header)
    if length > most:
        raise ValueError(f"frame of {length} bytes, at most {most} are allowed")
    return int(length)


def receive(sock: socket.socket, kind: type[MessageT], most: int = MAX_FRAME_BYTES) -> MessageT:
    """The next frame, of at most `most` bytes, and not a byte more. Raises EOFError, OSError, and ValueError for
    anything else than `kind`."""
    length = frame_length(_receive_exactly(sock, HEADER.size), most)
    return msgspec.msgpack.decode(_receive_exactly(sock, length), type=kind)


def _receive_exactly(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError("the other end closed the connection")
        data += part
    return bytes(data)


def local_environment(checkpoint: str) -> Environment:
    """This machine's, without loading torch. checkpoint: the fingerprint."""
    from importlib.metadata import version

    return Environment(__version__, platform.python_version(), version("torch"), checkpoint)


def cluster_key() -> str:
    """Empty where none is set."""
    return os.environ.get(KEY_VARIABLE, "")


def proof(key: str, nonce: bytes, who: str) -> bytes:
    """Shows that we have the key, without showing the key."""
    return hmac.digest(key.encode(), nonce + who.encode(), hashlib.sha256)


def is_proof(given: bytes, key: str, nonce: bytes, who: str) -> bool:
    return hmac.compare_digest(given, proof(key, nonce, who))
