"""What the front and the constraint process say to each other: question and answer, framed as in inferd.messages."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from inferd.messages import Vocabulary
from inferd.request import ConstraintSpec


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """The first message; answered by Checked without a content once the process is ready."""

    vocabulary: Vocabulary
    vocab_size: int  # the model's
    memory_bytes: int  # what a check may take on top of the vocabulary


class Check(msgspec.Struct, frozen=True, tag="check"):
    spec: ConstraintSpec


class Checked(msgspec.Struct, frozen=True):
    """The grammar, or why there is none. field: the part of a structural tag that is wrong, where it is one."""

    grammar: str = ""
    error: str | None = None
    field: str | None = None


Question: TypeAlias = Setup | Check
