"""ConstraintChecker against processes that misbehave, and what it remembers."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inferd import constraint_process
from inferd.constraint.protocol import Checked, Setup
from inferd.errors import InternalError, InvalidConstraint, QueueFull
from inferd.front import constraints as module
from inferd.front.constraints import ConstraintChecker, Outcomes, vocabulary_of
from inferd.messages import Vocabulary
from inferd.request import ConstraintKind, ConstraintSpec
from inferd.testing.byte_tokenizer import byte_tokenizer

VOCABULARY = vocabulary_of(byte_tokenizer())
VOCAB_SIZE = 259
ROOT = Path(__file__).resolve().parents[3]
# Answers the first question, then does what the source of the constraint says.
MISBEHAVING = f"""
import sys, time; sys.path.insert(0, {str(ROOT)!r})
from inferd import constraint_process as process
from inferd.constraint.protocol import Check, Checked
while (question := process.read_question(sys.stdin.buffer)) is not None:
    source = question.spec.source if isinstance(question, Check) else "ok"
    if source == "hang":
        time.sleep(1000)
    if source == "die":
        sys.exit(1)
    process.write_answer(sys.stdout.buffer, Checked(source))
"""


def regex(source: str) -> ConstraintSpec:
    return ConstraintSpec(ConstraintKind.REGEX, source)


def with_checker(
    work: Callable[[ConstraintChecker], Awaitable[None]],
    command: list[str] | None = None,
    introduce: Callable[[Vocabulary], None] = lambda vocabulary: None,
) -> None:
    async def run() -> None:
        checker = ConstraintChecker(lambda: VOCABULARY, introduce, command or [sys.executable, "-c", MISBEHAVING])
        try:
            await work(checker)
        finally:
            await checker.close()
        assert not checker._running
        assert not checker._busy

    asyncio.run(run())


async def error_of(checker: ConstraintChecker, source: str) -> str:
    with pytest.raises(InvalidConstraint) as caught:
        await checker.check(regex(source), VOCAB_SIZE)
    return caught.value.message


def test_what_hangs_or_dies_is_refused_and_the_next_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_S", 0.5)

    async def work(checker: ConstraintChecker) -> None:
        assert "more than 0.5 s" in await error_of(checker, "hang")
        assert "memory" in await error_of(checker, "die")
        assert await checker.check(regex("fine"), VOCAB_SIZE) == "fine"

    with_checker(work)


def test_the_vocabulary_is_introduced_once_and_when_it_is_needed() -> None:
    introduced: list[Vocabulary] = []

    async def work(checker: ConstraintChecker) -> None:
        assert introduced == []
        await asyncio.gather(*(checker.check(regex(f"r{n}"), VOCAB_SIZE) for n in range(4)))
        assert introduced == [VOCABULARY]

    with_checker(work, introduce=introduced.append)


def test_a_process_that_does_not_start_is_no_fault_of_the_caller() -> None:
    async def work(checker: ConstraintChecker) -> None:
        for _ in range(2):
            with pytest.raises(InternalError):
                await checker.check(regex("fine"), VOCAB_SIZE)

    with_checker(work, [sys.executable, "-c", "raise SystemExit(3)"])


def test_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is lowered until an ordinary schema needs too much."""
    monkeypatch.setattr(module, "MEMORY_BYTES", 1 << 20)

    async def work(checker: ConstraintChecker) -> None:
        choices = ConstraintSpec(ConstraintKind.CHOICES, json.dumps([f"choice {number}" for number in range(4000)]))
        with pytest.raises(InvalidConstraint, match="memory"):
            await checker.check(choices, VOCAB_SIZE)

    with_checker(work, list(module.COMMAND))


def test_one_question_for_many_who_ask_it() -> None:
    async def work(checker: ConstraintChecker) -> None:
        tasks = [asyncio.create_task(checker.check(regex("same"), VOCAB_SIZE)) for _ in range(50)]
        await asyncio.sleep(0)
        assert len(checker._running) == 1
        tasks[0].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[1:] == ["same"] * 49

    with_checker(work)


def test_too_many_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 3)

    async def work(checker: ConstraintChecker) -> None:
        tasks = [asyncio.create_task(checker.check(regex(f"r{n}"), VOCAB_SIZE)) for n in range(5)]
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert answers[:3] == ["r0", "r1", "r2"]
        assert all(isinstance(answer, QueueFull) for answer in answers[3:])

    with_checker(work)


def test_close_ends_who_waits() -> None:
    async def work(checker: ConstraintChecker) -> None:
        task = asyncio.create_task(checker.check(regex("hang"), VOCAB_SIZE))
        while not checker._busy:
            await asyncio.sleep(0.01)
        await checker.close()
        with pytest.raises(asyncio.CancelledError):
            await task

    with_checker(work)


def test_outcomes_are_remembered_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Outcomes()
    for number in range(10_000):
        outcomes.put(b"%d" % number, Checked("g" * (number % 1000)))
    assert len(outcomes) == module.MAX_OUTCOMES
    assert outcomes.get(b"0") is None
    assert outcomes.get(b"9999") == Checked("g" * 999)

    monkeypatch.setattr(module, "MAX_OUTCOME_BYTES", 100_000)
    outcomes.put(b"new", Checked(error="x" * 1000))
    assert outcomes.num_bytes <= 100_000
    assert outcomes.num_bytes == sum(map(module.size_of, outcomes._outcomes.values()))
    assert outcomes.get(b"new") is not None


def test_what_killed_two_processes_is_remembered_and_what_took_too_long_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHECK_TIMEOUT_S", 0.5)
    started: list[None] = []
    start = module.Worker.start

    async def counted(worker: module.Worker, setup: Setup) -> None:
        started.append(None)
        await start(worker, setup)

    monkeypatch.setattr(module.Worker, "start", counted)

    async def work(checker: ConstraintChecker) -> None:
        for _ in range(3):
            assert "memory" in await error_of(checker, "die")
        assert len(started) == 2
        for _ in range(2):
            assert "0.5 s" in await error_of(checker, "hang")
        assert len(started) == 4

    with_checker(work)


def test_a_fault_of_ours_costs_the_process_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def faulty(spec: ConstraintSpec, factory: object) -> str:
        raise ValueError("a text that only a log may hold")

    monkeypatch.setattr(constraint_process, "checked_grammar", faulty)
    factory: Any = None
    answer = constraint_process.outcome_of(regex("a"), factory)

    assert answer == Checked(error="it cannot be compiled: ValueError")
    assert "a text that only a log may hold" in capsys.readouterr().err
