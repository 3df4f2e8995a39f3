"""`python -m inferd.constraint_process`: checks constraints, within limits, for the front. Talks over stdin and stdout.

A schema that takes too long gets this process killed, one that takes too much memory ends it; nobody else notices.
"""

from __future__ import annotations

import resource
import sys
import traceback
from pathlib import Path
from typing import BinaryIO

import msgspec

from inferd.constraint.grammar import checked_grammar
from inferd.constraint.matcher import MatcherFactory
from inferd.constraint.protocol import Check, Checked, Question, Setup
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.core.lifetime import follow_parent
from inferd.errors import InvalidConstraint
from inferd.messages import HEADER
from inferd.request import ConstraintSpec


def main() -> int:
    follow_parent()
    questions, answers = sys.stdin.buffer, sys.stdout.buffer
    factory: MatcherFactory | None = None
    while (question := read_question(questions)) is not None:
        match question:
            case Setup():
                factory = MatcherFactory(MatchVocabulary(question.vocabulary, question.vocab_size))
                limit_resources(question.memory_bytes)
                write_answer(answers, Checked())
            case Check(spec):
                assert factory is not None, "Setup comes first"
                write_answer(answers, outcome_of(spec, factory))
    return 0


def outcome_of(spec: ConstraintSpec, factory: MatcherFactory) -> Checked:
    """The answer to a question. A fault of ours costs whoever met it an error, not this process."""
    try:
        return Checked(checked_grammar(spec, factory))
    except InvalidConstraint as error:
        return Checked(error=error.message, field=error.field)
    except (MemoryError, RecursionError):
        return Checked(error="it needs too much memory")
    except Exception as error:  # the top of this process
        traceback.print_exc()
        return Checked(error=f"it cannot be compiled: {type(error).__name__}")


def limit_resources(memory_bytes: int) -> None:
    """From now on: so much more address space, no file may be written, no core dump."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def read_question(stream: BinaryIO) -> Question | None:
    """None when the front is gone."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    question: Question = msgspec.msgpack.decode(stream.read(HEADER.unpack(header)[0]), type=Question)
    return question


def write_answer(stream: BinaryIO, answer: Checked) -> None:
    payload = msgspec.msgpack.encode(answer)
    stream.write(HEADER.pack(len(payload)) + payload)
    stream.flush()


if __name__ == "__main__":
    sys.exit(main())
