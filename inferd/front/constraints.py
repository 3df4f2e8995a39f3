"""ConstraintChecker: constraints are compiled in processes of their own, with limits, and the outcomes remembered."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec

from inferd.constraint.protocol import Check, Checked, Question, Setup
from inferd.errors import InternalError, InvalidConstraint, QueueFull
from inferd.messages import HEADER, MAX_FRAME_BYTES, Vocabulary
from inferd.request import ConstraintSpec
from inferd.text.tokenizer import Tokenizer

logger = logging.getLogger("inferd.constraints")

COMMAND = (sys.executable, "-P", "-m", "inferd.constraint_process")
WORKERS = 2
MAX_PENDING = 64
START_TIMEOUT_S = 30.0
CHECK_TIMEOUT_S = 2.0
MEMORY_BYTES = 512 * 1024 * 1024
DEADLY = Checked(error="it needs too much memory to compile")  # two processes died over it
MAX_OUTCOMES = 1024
MAX_OUTCOME_BYTES = 16 * 1024 * 1024


class ConstraintChecker:
    """check() may be called by any number of tasks. Nothing is made, and no process started, before it is needed."""

    def __init__(
        self,
        make_vocabulary: Callable[[], Vocabulary],
        introduce: Callable[[Vocabulary], None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        """introduce: called with the vocabulary before the first check() returns. What is made of it takes some 300
        bytes per token, in the core as well: whoever uses no constraint shall not pay."""
        self._make_vocabulary = make_vocabulary
        self._introduce = introduce
        self._command = command
        self._vocabulary: Vocabulary | None = None
        self._making = asyncio.Lock()
        self._outcomes = Outcomes()
        self._running: dict[bytes, asyncio.Task[Checked]] = {}
        self._slots = asyncio.Semaphore(WORKERS)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()

    async def check(self, spec: ConstraintSpec, vocab_size: int) -> str:
        """The constraint's grammar. Raises InvalidConstraint, and QueueFull when too many are waiting."""
        key = digest(spec)
        outcome = self._outcomes.get(key)
        if outcome is None:
            task = self._running.get(key)
            if task is None:
                task = self._start(key, spec, vocab_size)
            outcome = await asyncio.shield(task)
        if outcome.error is not None:
            raise InvalidConstraint(outcome.error, field=outcome.field)
        return outcome.grammar

    async def close(self) -> None:
        """End the processes, and whoever waits for them."""
        for task in self._running.values():
            task.cancel()
        for worker in [*self._idle, *self._busy]:
            await worker.kill()
        self._idle.clear()

    def _start(self, key: bytes, spec: ConstraintSpec, vocab_size: int) -> asyncio.Task[Checked]:
        if len(self._running) >= MAX_PENDING:
            raise QueueFull(f"{len(self._running)} constraints are being compiled", retry_after_s=1.0)
        task = asyncio.create_task(self._run(key, spec, vocab_size))
        self._running[key] = task
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: bytes, task: asyncio.Task[Checked]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever waited has seen it; nobody may have

    async def _run(self, key: bytes, spec: ConstraintSpec, vocab_size: int) -> Checked:
        async with self._slots:
            worker = self._idle.pop() if self._idle else Worker(self._command)
            self._busy.add(worker)
            try:
                outcome = await self._ask(worker, spec, vocab_size)
            except BaseException:
                await worker.kill()
                raise
            finally:
                self._busy.discard(worker)
        if worker.started:
            self._idle.append(worker)
        if worker.started or outcome == DEADLY:
            self._outcomes.put(key, outcome)  # what took too much time might take less on another day
        return outcome

    async def _ask(self, worker: Worker, spec: ConstraintSpec, vocab_size: int) -> Checked:
        """The outcome. A process that dies over a question may have been about to die: a fresh one is asked too."""
        for _ in range(2):
            if not worker.started:
                await worker.start(Setup(await self._introduced(), vocab_size, MEMORY_BYTES))
            outcome = await worker.check(spec)
            if outcome is not None:
                return outcome
        return DEADLY

    async def _introduced(self) -> Vocabulary:
        """The vocabulary. Whoever else needs it prepares while our first process starts."""
        async with self._making:
            if self._vocabulary is None:
                self._vocabulary = await asyncio.to_thread(self._make_vocabulary)
                self._introduce(self._vocabulary)
        return self._vocabulary


class Worker:
    """One constraint process; one question at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    @property
    def started(self) -> bool:
        return self._process is not None

    async def start(self, setup: Setup) -> None:
        """Raises InternalError when the process does not come up."""
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._ask(setup)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            logger.error("the constraint process did not start: %r", error)
            raise InternalError("constraints cannot be compiled") from error

    async def check(self, spec: ConstraintSpec) -> Checked | None:
        """The outcome; None when the process died. It is gone, too, when the check took too long."""
        outcome = None
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                return await self._ask(Check(spec))
        except TimeoutError:
            outcome = Checked(error=f"it takes more than {CHECK_TIMEOUT_S:g} s to compile")
        except (OSError, asyncio.IncompleteReadError) as error:
            logger.warning("a constraint process died: %r", error)
        await self.kill()
        return outcome

    async def kill(self) -> None:
        """End the process, whatever it does; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()

    async def _ask(self, question: Question) -> Checked:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        payload = msgspec.msgpack.encode(question)
        process.stdin.write(HEADER.pack(len(payload)) + payload)
        await process.stdin.drain()
        (length,) = HEADER.unpack(await process.stdout.readexactly(HEADER.size))
        if length > MAX_FRAME_BYTES:
            raise OSError(f"an answer of {length} bytes")
        return msgspec.msgpack.decode(await process.stdout.readexactly(length), type=Checked)


class Outcomes:
    """The last outcomes by use, bounded in number and bytes."""

    def __init__(self) -> None:
        self._outcomes: OrderedDict[bytes, Checked] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._outcomes)

    def get(self, key: bytes) -> Checked | None:
        if key in self._outcomes:
            self._outcomes.move_to_end(key)
        return self._outcomes.get(key)

    def put(self, key: bytes, outcome: Checked) -> None:
        if key in self._outcomes:
            return
        self._outcomes[key] = outcome
        self.num_bytes += size_of(outcome)
        while len(self._outcomes) > MAX_OUTCOMES or self.num_bytes > MAX_OUTCOME_BYTES:
            _, oldest = self._outcomes.popitem(last=False)
            self.num_bytes -= size_of(oldest)


def size_of(outcome: Checked) -> int:
    """About what an entry takes."""
    return 512 + 4 * len(outcome.grammar) + 4 * len(outcome.error or "")


def digest(spec: ConstraintSpec) -> bytes:
    return hashlib.sha256(msgspec.msgpack.encode(spec)).digest()


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(
        token_bytes=[tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)],
        eos_token_ids=list(tokenizer.eos_token_ids),
        special_token_ids=sorted({token_id for _, _, token_id in tokenizer.special_tokens}),
    )
