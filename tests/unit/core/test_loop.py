"""EngineLoop on one end of a socket pair, a test on the other."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from inferd.config import CacheConfig, SchedulerConfig
from inferd.core.channel import Describe, FrontChannel, FrontGone
from inferd.core.dump import MAX_SEQUENCES, MAX_TOKENS, describe
from inferd.core.loop import EngineLoop
from inferd.core.reclaim import Reclaimer
from inferd.executor.base import ExecutorDead
from inferd.messages import (
    MAX_FRAME_BYTES,
    AbortChoice,
    AddRequest,
    ChoiceOutput,
    ClearPrefixCache,
    DumpState,
    FrameDecoder,
    PrefixCacheCleared,
    Shutdown,
    StateDump,
    StepOutputs,
    ToCore,
    ToFront,
    encode_frame,
)
from inferd.request import FinishReason
from inferd.scheduler.scheduler import Scheduler
from inferd.testing.fake_executor import Behaviour, FakeExecutor, fake_info, solo_tokens
from inferd.testing.requests import Driver, capacity, make_request


class Front:
    """The other end: sends messages, collects what comes back."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(20.0)
        self._decoder = FrameDecoder(ToFront)
        self._pending: list[object] = []
        self.messages: list[object] = []

    def send(self, *messages: ToCore) -> None:
        self.sock.sendall(b"".join(encode_frame(message) for message in messages))

    def receive(self) -> object:
        while not self._pending:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._pending = self._decoder.feed(data)
        self.messages.append(self._pending.pop(0))
        return self.messages[-1]

    def receive_until_end(self, key: int) -> list[ChoiceOutput]:
        """All outputs of a request of one choice."""
        outputs: list[ChoiceOutput] = []
        while not outputs or (outputs[-1].finish is None and outputs[-1].error is None):
            message = self.receive()
            assert isinstance(message, StepOutputs)
            outputs += [output for output in message.outputs if output.key == key]
        return outputs


class Engine:
    """A loop in a thread; its exception, if any, is in `failure`."""

    def __init__(self, behaviour: Behaviour, max_context: int = 2048, looks_ahead: bool = False) -> None:
        ours, self.sock = socket.socketpair()
        self.front = Front(ours)
        self.executor = FakeExecutor(fake_info(1024, 4, max_context, 1000, looks_ahead=looks_ahead), behaviour)
        self.scheduler = Scheduler(SchedulerConfig(), CacheConfig(), capacity(self.executor.info))
        self.channel = FrontChannel(self.sock, partial(describe, self.scheduler))
        self.channel.start()
        self.failure: BaseException | None = None
        reclaimer = Reclaimer(self.scheduler, self.executor, CacheConfig(), time.monotonic)
        self.thread = threading.Thread(
            target=self._run, args=(EngineLoop(self.scheduler, self.executor, self.channel, reclaimer),)
        )
        self.thread.start()

    def _run(self, loop: EngineLoop) -> None:
        try:
            loop.run()
        except Exception as error:
            self.failure = error

    def join(self) -> None:
        self.thread.join(20.0)
        assert not self.thread.is_alive()


@contextmanager
def engine(behaviour: Behaviour | None = None, looks_ahead: bool = False) -> Iterator[Engine]:
    running = Engine(behaviour or Behaviour(), looks_ahead=looks_ahead)
    try:
        yield running
    finally:
        running.front.sock.close()
        running.join()
        running.sock.close()


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_a_request_comes_back_token_by_token(looks_ahead: bool):
    with engine(looks_ahead=looks_ahead) as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=3, seed=4)))
        outputs = core.front.receive_until_end(1)
    assert [token for output in outputs for token in output.token_ids] == solo_tokens(range(5), 4, 0, 3, 1000)
    assert len(core.front.messages) == 3, "one message per step"
    assert outputs[-1].finish is FinishReason.MAX_TOKENS
    assert core.failure is None


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_the_last_message_of_a_burst_says_idle(looks_ahead: bool):
    with engine(looks_ahead=looks_ahead) as core:
        core.front.send(*[AddRequest(make_request(key, range(5), max_tokens=2)) for key in range(8)])
        ended: set[int] = set()
        while len(ended) < 8:
            message = core.front.receive()
            assert isinstance(message, StepOutputs)
            ended |= {output.key for output in message.outputs if output.finish is not None}
        assert (message.stats.running, message.stats.waiting, message.stats.blocks_used) == (0, 0, 0)


@pytest.mark.parametrize("looks_ahead", [False, True])
def test_an_abort_is_answered_by_stats_alone(looks_ahead: bool):
    with engine(Behaviour(step_s=0.002), looks_ahead) as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=2000)))
        core.front.receive()
        core.front.send(AbortChoice(1))
        while True:
            message = core.front.receive()
            assert isinstance(message, StepOutputs)
            if message.stats.running == 0:
                break
        assert message.outputs == []
        assert message.stats.blocks_used == 0
        assert message.stats.steps < 2000


def test_a_bad_request_fails_alone():
    with engine() as core:
        good = make_request(1, range(5), max_tokens=200)
        bad = make_request(2, [5000])
        core.front.send(AddRequest(good), AddRequest(bad), AddRequest(good))
        (failed,) = core.front.receive_until_end(2)
        assert failed.error == "INVALID_PARAMETER"
        core.front.send(AddRequest(make_request(3, range(5), max_tokens=1)))
        assert core.front.receive_until_end(3)[-1].finish is FinishReason.MAX_TOKENS


def test_an_expired_request_is_answered_without_a_step():
    with engine() as core:
        core.front.send(AddRequest(make_request(1, range(5), deadline=1.0)))
        (output,) = core.front.receive_until_end(1)
        assert output.error == "DEADLINE_EXCEEDED"
        assert core.executor._step == 0


def test_clear_prefix_cache():
    with engine() as core:
        core.front.send(AddRequest(make_request(1, range(9), max_tokens=1)))
        core.front.receive_until_end(1)
        core.front.send(ClearPrefixCache(token=77))
        assert core.front.receive() == PrefixCacheCleared(77, 2)


def test_shutdown_leaves_at_once():
    with engine(Behaviour(step_s=0.002)) as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=2000)))
        core.front.receive()
        core.front.send(Shutdown())
        core.join()
        assert core.failure is None
        assert core.scheduler.stats().steps < 2000


def test_eof_ends_the_loop_idle_or_busy():
    for busy in (False, True):
        with engine(Behaviour(step_s=0.002)) as core:
            if busy:
                core.front.send(AddRequest(make_request(1, range(5), max_tokens=2000)))
                core.front.receive()
            core.front.sock.close()
            core.join()
            assert core.failure is None


def test_a_malformed_frame_ends_the_loop():
    with engine() as core:
        core.front.sock.sendall(b"\x00\x00\x00\x02{}")
        core.join()


@pytest.mark.parametrize(
    ("behaviour", "kind"), [(Behaviour(die_at_step=2), ExecutorDead), (Behaviour(fail_at_step=2), RuntimeError)]
)
def test_a_failing_step_ends_the_loop_with_its_error(behaviour, kind):
    with engine(behaviour) as core:
        core.front.send(AddRequest(make_request(1, range(5))))
        core.join()
    assert isinstance(core.failure, kind)


def test_the_books_are_checked_when_idle(monkeypatch):
    checked = threading.Event()
    monkeypatch.setattr("inferd.core.loop.SETTLE_AFTER_IDLE_S", 0.01)
    monkeypatch.setattr(Scheduler, "check", lambda self: checked.set())
    with engine() as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=1)))
        core.front.receive_until_end(1)
        assert checked.wait(20.0)


def test_memory_of_steps_is_returned_while_requests_keep_coming(monkeypatch):
    trimmed = []
    monkeypatch.setattr("inferd.core.loop.TRIM_INTERVAL_S", 0.0)
    monkeypatch.setattr("inferd.core.loop.return_freed_memory", lambda: trimmed.append(None))
    with engine() as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=3)))
        core.front.receive_until_end(1)
        assert len(trimmed) >= 2


def test_a_dump_is_answered_while_a_step_hangs():
    release, stuck = threading.Event(), threading.Event()

    def hang(_: float) -> None:
        stuck.set()
        release.wait(20.0)

    with engine(Behaviour(step_s=1.0)) as core:
        core.executor._sleep = hang
        request = make_request(1, range(5), max_tokens=1)
        core.front.send(AddRequest(request))
        assert stuck.wait(20.0)
        for include_tokens in (False, True):
            core.front.send(DumpState(token=5, include_tokens=include_tokens))
            dump = core.front.receive()
            assert isinstance(dump, StateDump)
            assert dump.token == 5
            sections = {name: json.loads(data) for name, data in dump.sections.items()}
            assert set(sections) == {"scheduler", "sequences", "blocks", "threads"}
            (sequence,) = sections["sequences"]
            assert (sequence["request_id"], sequence["status"]) == (request.request_id, "running")
            assert ("token_ids" in sequence) is include_tokens
            assert any("in hang" in line for stack in sections["threads"].values() for line in stack)
            assert (sections["scheduler"]["running"], sections["blocks"]["used"]) == (1, 2)
        release.set()
        core.front.receive_until_end(1)


def huge(include_tokens: bool) -> dict[str, bytes]:
    return {"sequences": bytes(MAX_FRAME_BYTES)}


def broken(include_tokens: bool) -> dict[str, bytes]:
    raise RuntimeError("dictionary changed size during iteration")


@pytest.mark.parametrize(("describe_badly", "reason"), [(huge, "at most 67108864"), (broken, "changed size")])
def test_a_dump_that_cannot_be_sent_says_why_and_ends_nothing(describe_badly: Describe, reason: str):
    with engine() as core:
        core.channel.describe = describe_badly
        core.front.send(DumpState(token=5, include_tokens=True), AddRequest(make_request(1, range(5), max_tokens=1)))
        dump = core.front.receive()
        assert isinstance(dump, StateDump)
        assert reason in json.loads(dump.sections["core_error"])
        assert core.front.receive_until_end(1)[-1].finish is FinishReason.MAX_TOKENS


def test_a_dump_describes_no_more_than_a_frame_holds(monkeypatch):
    monkeypatch.setattr("inferd.core.dump.MAX_SEQUENCES", 3)
    monkeypatch.setattr("inferd.core.dump.MAX_TOKENS", 15)
    drive = Driver()
    drive.add(*[make_request(key, range(7)) for key in range(5)])
    sections = {name: json.loads(data) for name, data in describe(drive.scheduler, True).items()}
    assert sections["scheduler"]["sequences_left_out"] == 2
    assert [len(sequence.get("token_ids", [])) for sequence in sections["sequences"]] == [7, 7, 0]


def test_the_bounds_of_a_dump_fit_a_frame():
    drive = Driver(fake_info(vocab_size=1 << 20, max_context_tokens=1 << 20))
    request = make_request(1 << 40, [(1 << 20) - 1] * 200, request_id="x" * 128, arrival=1e9 / 3, deadline=1e10 / 3)
    drive.add(request)
    with_tokens = len(describe(drive.scheduler, True)["sequences"])
    without = len(describe(drive.scheduler, False)["sequences"])
    per_token = (with_tokens - without) / 200
    assert MAX_SEQUENCES * 1.2 * without + MAX_TOKENS * per_token < MAX_FRAME_BYTES


class NarrowChannel:
    """Refuses messages of more outputs than `limit`, as a frame that is too small would."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.sent: list[ToFront] = []

    def send(self, message: ToFront) -> None:
        if isinstance(message, StepOutputs) and any(
            output.key == 666 and not output.error for output in message.outputs
        ):
            raise ValueError("too large by itself")
        if isinstance(message, StepOutputs) and len(message.outputs) > self.limit:
            raise ValueError("too large")
        self.sent.append(message)


def test_outputs_too_large_for_a_frame_are_split_and_a_hopeless_one_fails_alone():
    executor = FakeExecutor()
    scheduler = Scheduler(SchedulerConfig(), CacheConfig(), capacity(executor.info))
    channel = NarrowChannel(limit=2)
    reclaimer = Reclaimer(scheduler, executor, CacheConfig(), time.monotonic)
    loop = EngineLoop(scheduler, executor, channel, reclaimer)  # type: ignore[arg-type]
    outputs = [ChoiceOutput(key, 0, [1], []) for key in (1, 2, 666, 3, 4)]
    loop._send(outputs)
    sent = [output for message in channel.sent for output in message.outputs]  # type: ignore[union-attr]
    assert [(output.key, output.error) for output in sent] == [
        (1, None),
        (2, None),
        (666, "INTERNAL"),
        (3, None),
        (4, None),
    ]


def test_send_to_a_closed_front_is_front_gone():
    ours, theirs = socket.socketpair()
    channel = FrontChannel(theirs, partial(describe, None))
    ours.close()
    with pytest.raises(FrontGone):
        channel.send(PrefixCacheCleared(1, 1))
    theirs.close()


def test_a_front_that_does_not_read_is_gone_after_the_send_timeout(monkeypatch):
    monkeypatch.setattr("inferd.core.channel.SEND_TIMEOUT_S", 0.05)
    ours, theirs = socket.socketpair()
    channel = FrontChannel(theirs, partial(describe, None))
    with pytest.raises(FrontGone):
        channel.send(StateDump(1, {"x": bytes(32 << 20)}))
    ours.close()
    theirs.close()


def test_a_worker_that_dies_while_nothing_runs_ends_the_loop():
    with engine() as core:
        core.front.send(AddRequest(make_request(1, range(5), max_tokens=1)))
        core.front.receive_until_end(1)
        core.executor.on_death(ExecutorDead("rank 1 died"))
        core.join()
    assert isinstance(core.failure, ExecutorDead)
