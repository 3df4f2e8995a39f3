"""EngineClient over scripted cores: processes that say one thing and then live, die or hang."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import pytest

from inferd.config import EngineConfig, ModelConfig, ParallelConfig
from inferd.errors import EngineDead, StartupError
from inferd.front import engine_client
from inferd.front.core_link import describe_exit
from inferd.front.engine_client import EngineClient, EngineState
from inferd.messages import Ready, StepOutputs

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = """
import os, signal, socket, sys, time
sys.path.insert(0, {root!r})
from inferd.messages import Failed, HEADER, Phase, Ready, encode_frame
sock = socket.socket(fileno=int(sys.argv[-1]))
(size,) = HEADER.unpack(sock.recv(4))
assert len(sock.recv(size)) == size
def say(message): sock.sendall(encode_frame(message))
def ready(): say(Ready(max_context_tokens=9, num_blocks=1, block_size=1, vocab_size=1, architecture="", dtype="",
    quantization="", backends={{}}, weight_bytes=0, kv_bytes=0, phases={{}}))
{body}
"""


class Listener:
    busy = False

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_ready(self, ready: Ready) -> None:
        self.events.append("ready")

    def on_outputs(self, outputs: StepOutputs) -> None:
        self.events.append("outputs")

    def on_lost(self, reason: str, may_resume: bool) -> None:
        self.events.append(f"lost: {reason}")

    def on_dead(self, reason: str) -> None:
        self.events.append(f"dead: {reason}")


def make_client(
    tmp_path: Path, body: str, load_timeout_s: float = 20.0, **parallel: Any
) -> tuple[EngineClient, Listener]:
    script = tmp_path / "core.py"
    script.write_text(SCRIPT.format(root=str(ROOT), body=body))
    listener = Listener()
    config = EngineConfig(
        model=ModelConfig(source="x", path="x"),
        parallel=ParallelConfig(**parallel),
        load_timeout_s=load_timeout_s,
    )
    return EngineClient(config, listener, command=(sys.executable, str(script))), listener


def outlive(client: EngineClient) -> None:
    """Supervise until the client gives up."""

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await client.start()
            await client.supervise()

    asyncio.run(scenario())


def test_a_core_that_says_why_it_cannot_start(tmp_path: Path) -> None:
    client, listener = make_client(tmp_path, "say(Failed('no such tensor')); sys.exit(1)")
    with pytest.raises(StartupError, match=r"^no such tensor$"):
        outlive(client)
    assert client.state is EngineState.DEAD
    assert listener.events == []


def test_a_core_that_dies_while_it_starts(tmp_path: Path) -> None:
    body = "say(Phase('weights', 0.5, 1.0)); os.kill(os.getpid(), signal.SIGKILL)"
    client, _ = make_client(tmp_path, body)
    with pytest.raises(StartupError, match=r"was killed by SIGKILL \(out of memory\?\) during start-up \(weights\)"):
        outlive(client)


def test_a_core_that_dies_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "BACKOFF_S", (0.0,))
    client, listener = make_client(tmp_path, "ready(); sys.exit(3)")
    with pytest.raises(EngineDead, match="died 5 times"):
        outlive(client)
    assert listener.events[:-1] == ["ready", "lost: exited with code 3"] * 4 + ["ready"]
    assert listener.events[-1].startswith("dead: ")


def test_long_loading_does_not_hide_that_cores_die_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each core takes longer to load than all of them would have had to live before."""
    monkeypatch.setattr(engine_client, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(engine_client, "MIN_SERVED_S", 0.5)
    client, _ = make_client(tmp_path, "time.sleep(0.6); ready(); sys.exit(3)")
    with pytest.raises(EngineDead, match="died 5 times in 0 s of service; it last exited with code 3"):
        outlive(client)


def test_cores_that_served_long_enough_are_replaced_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_client, "BACKOFF_S", (0.0,))
    monkeypatch.setattr(engine_client, "MIN_SERVED_S", 0.1)
    client, listener = make_client(tmp_path, "ready(); time.sleep(0.2); sys.exit(3)")

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await client.start()
            supervisor = asyncio.create_task(client.supervise())
            while listener.events.count("ready") < 7:
                await asyncio.sleep(0.01)
            await client.stop()
            await supervisor

    asyncio.run(scenario())


def test_a_core_that_hangs_while_it_loads_is_killed(tmp_path: Path) -> None:
    body = "say(Phase('weights', 0.5, 1.0)); time.sleep(60)"
    client, _ = make_client(tmp_path, body, load_timeout_s=2.0)
    with pytest.raises(StartupError, match=r"made no progress for 2 s during start-up \(weights\)"):
        outlive(client)


def test_a_core_that_loads_for_long_and_says_so_is_not_killed(tmp_path: Path) -> None:
    body = "for i in range(15): say(Phase('weights', i / 15, 1.0)); time.sleep(0.2)\nready(); sys.exit(3)"
    client, listener = make_client(tmp_path, body, load_timeout_s=2.0)

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await client.start()
            supervisor = asyncio.create_task(client.supervise())
            await client.serving.wait()
            await client.stop()
            await supervisor

    asyncio.run(scenario())
    assert listener.events == ["ready"]


@pytest.mark.parametrize(
    "body",
    ["ready(); time.sleep(0.3); sock.sendall(b'\\x7f' * 64); time.sleep(60)", "ready(); sock.close(); time.sleep(60)"],
)
def test_a_core_that_talks_nonsense_or_hangs_up_is_replaced(tmp_path: Path, body: str) -> None:
    client, listener = make_client(tmp_path, body)

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await client.start()
            supervisor = asyncio.create_task(client.supervise())
            while not any(event.startswith("lost") for event in listener.events):
                await asyncio.sleep(0.01)
            await client.stop()
            await supervisor

    asyncio.run(scenario())
    assert "malformed frame" in listener.events[1] or "closed its socket" in listener.events[1]


def test_only_a_core_that_owes_output_is_hung(tmp_path: Path) -> None:
    client, listener = make_client(tmp_path, "ready(); time.sleep(60)", step_timeout_s=0.4)

    async def scenario() -> None:
        async with asyncio.timeout(30):
            await client.start()
            supervisor = asyncio.create_task(client.supervise())
            await client.serving.wait()
            await asyncio.sleep(1.0)
            assert listener.events == ["ready"]
            listener.busy = True
            while len(listener.events) < 2:
                await asyncio.sleep(0.01)
            listener.busy = False
            await client.stop()
            await supervisor

    asyncio.run(scenario())
    assert listener.events[1] == "lost: made no progress for 0.4 s"


def test_exits_in_words() -> None:
    assert describe_exit(0) == "exited with code 0"
    assert describe_exit(-11) == "was killed by SIGSEGV"
