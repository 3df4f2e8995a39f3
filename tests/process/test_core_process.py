"""The core as a process: start-up, exit statuses, and that nothing of it outlives the front."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferd.config import CacheConfig, EngineConfig, ModelConfig
from inferd.messages import (
    AddRequest,
    DumpState,
    Failed,
    FrameDecoder,
    Phase,
    Ready,
    Shutdown,
    StateDump,
    StepOutputs,
    ToFront,
    encode_frame,
)
from inferd.testing.requests import make_request

ROOT = Path(__file__).parents[2]
CONFIG = EngineConfig(
    model=ModelConfig(source="fake", path="fake", max_model_len=128), cache=CacheConfig(num_blocks=20)
)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


class Core:
    def __init__(self, options: dict[str, object]) -> None:
        self.sock, theirs = socket.socketpair()
        self.sock.settimeout(30.0)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "inferd.testing.fake_core", "--fd", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=ENVIRONMENT | {"INFERD_FAKE_CORE": json.dumps(options)},
            stderr=subprocess.PIPE,
            text=True,
        )
        theirs.close()
        self.sock.sendall(encode_frame(CONFIG))  # type: ignore[arg-type]  # the one frame that is no message
        self._decoder = FrameDecoder(ToFront)
        self._pending: list[object] = []

    def receive(self) -> object:
        while not self._pending:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._pending = self._decoder.feed(data)
        return self._pending.pop(0)

    def receive_until(self, kind: type) -> list[object]:
        messages = [self.receive()]
        while not isinstance(messages[-1], kind):
            messages.append(self.receive())
        return messages

    def wait(self) -> tuple[int, str]:
        """Exit status and stderr."""
        _, errors = self.process.communicate(timeout=30.0)
        return self.process.returncode, errors

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start() -> Iterator[Callable[..., Core]]:
    cores: list[Core] = []

    def start_core(**options: object) -> Core:
        cores.append(Core(options))
        return cores[-1]

    yield start_core
    for core in cores:
        core.close()


def test_phases_then_ready_then_outputs_then_shutdown(start):
    core = start()
    *phases, ready = core.receive_until(Ready)
    assert all(isinstance(phase, Phase) for phase in phases)
    assert (phases[0].name, phases[0].fraction, phases[-1].fraction) == ("weights", 0.0, 1.0)
    assert (ready.max_context_tokens, ready.num_blocks, ready.block_size) == (128, 20, 16)
    assert set(ready.phases) == {"weights"}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        core.process.send_signal(number)
    core.sock.sendall(encode_frame(AddRequest(make_request(1, range(5), max_tokens=1))))
    assert isinstance(core.receive(), StepOutputs)
    core.sock.sendall(encode_frame(Shutdown()))
    assert core.wait() == (0, "")


def test_a_startup_error_is_one_message_and_status_1(start):
    core = start(startup_error="no such checkpoint")
    assert core.receive_until(Failed)[-1] == Failed("no such checkpoint")
    assert core.wait() == (1, "")


@pytest.mark.parametrize(
    ("behaviour", "said"), [({"die_at_step": 1}, "the executor died"), ({"fail_at_step": 1}, "the engine core failed")]
)
def test_a_failed_step_is_logged_once_and_status_1(start, behaviour, said):
    core = start(behaviour=behaviour)
    core.receive_until(Ready)
    core.sock.sendall(encode_frame(AddRequest(make_request(1, range(5)))))
    status, errors = core.wait()
    assert status == 1
    assert errors.count(said) == 1
    assert errors.count("Traceback") == ("fail_at_step" in behaviour)


@pytest.mark.parametrize("moment", ["loading", "idle", "in a step"])
def test_eof_ends_the_process_within_two_seconds(start, moment):
    core = start(load_s=60.0 if moment == "loading" else 0.0, behaviour={"step_s": 60.0})
    core.receive_until(Phase if moment == "loading" else Ready)
    if moment == "in a step":
        core.sock.sendall(encode_frame(AddRequest(make_request(1, range(5)))))
        while not is_running(core):
            pass
    closed = time.monotonic()
    core.sock.close()
    status, _ = core.wait()
    assert time.monotonic() - closed < 2.5
    assert status == (0 if moment == "idle" else 1)


def is_running(core: Core) -> bool:
    """Whether a sequence has been scheduled; the step that follows does not end."""
    core.sock.sendall(encode_frame(DumpState(token=1)))
    dump = core.receive()
    assert isinstance(dump, StateDump)
    return b'"running"' in dump.sections["sequences"]


FRONT_THAT_DIES = """
import os, socket, subprocess, sys
ours, theirs = socket.socketpair()
child = subprocess.Popen(
    [sys.executable, "-m", "inferd.testing.fake_core", "--fd", str(theirs.fileno())],
    pass_fds=[theirs.fileno(), ours.fileno()],
)
ours.sendall(bytes.fromhex(sys.argv[1]))
ours.recv(1)  # a phase: the process is up
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_killed_parent_takes_the_core_with_it():
    """The core inherits the front's end of the socket too, so that it cannot see an end of file."""
    frame = encode_frame(CONFIG).hex()  # type: ignore[arg-type]
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT_THAT_DIES, frame],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with front:
        assert front.stdout is not None
        pid = int(front.stdout.readline())
        watch = os.pidfd_open(pid)
        front.kill()
        ended, _, _ = select.select([watch], [], [], 2.0)
        os.close(watch)
        assert ended, "the core outlived its front"


@pytest.mark.parametrize("flags", [[], ["--load-torch"]])
def test_no_configuration_is_no_error(flags):
    ours, theirs = socket.socketpair()
    with subprocess.Popen(
        [sys.executable, "-m", "inferd.core_process", "--fd", str(theirs.fileno()), *flags],
        pass_fds=[theirs.fileno()],
        env=ENVIRONMENT,
    ) as process:
        theirs.close()
        ours.close()
        assert process.wait(30.0) == 0


def test_the_core_process_loads_neither_torch_nor_grpc():
    code = (
        "import sys, inferd.core_process; print(sorted({'torch', 'grpc', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True).strip() == "[]"


def test_torch_comes_without_its_meta_kernels_until_the_compiler_needs_them():
    code = """
from inferd.executor.torch_import import META_KERNELS, import_torch
import sys
import_torch()
import torch
print(META_KERNELS in sys.modules, torch.ones(2, 2).matmul(torch.ones(2)).tolist())
import torch._dynamo  # fails unless they come first
print(len(vars(torch._meta_registrations)) > 100)
"""
    output = subprocess.check_output([sys.executable, "-c", code], env=ENVIRONMENT, text=True)
    assert output.splitlines() == ["False [2.0, 2.0]", "True"]


def test_an_idle_core_uses_no_processor_time(start):
    core = start()
    core.receive_until(Ready)
    select.select([core.sock], [], [], 0.2)  # it gives back what the start took
    before = cpu_ticks(core.process.pid)
    select.select([core.sock], [], [], 1.0)  # nothing comes
    assert cpu_ticks(core.process.pid) - before <= 1


def cpu_ticks(pid: int) -> int:
    """Hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])
