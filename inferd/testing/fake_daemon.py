"""`python -m inferd.testing.fake_daemon`: the real daemon over the fake core, configured by INFERD_FAKE_DAEMON (JSON of
InferdConfig). Prints one line of JSON once it serves. `DaemonProcess` runs it for a test."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from inferd.config import (
    EngineConfig,
    InferdConfig,
    ModelConfig,
    ParallelConfig,
    Pooling,
    SchedulerConfig,
    ServerConfig,
)
from inferd.errors import StartupError
from inferd.log import configure_logging
from inferd.models.pooling import Capabilities, Embedding
from inferd.server.app import Listening, StopSignals, run_daemon
from inferd.server.served_model import ServedModel
from inferd.testing.byte_tokenizer import byte_tokenizer

CONFIG_VARIABLE = "INFERD_FAKE_DAEMON"
CORE = (sys.executable, "-P", "-X", "faulthandler", "-m", "inferd.testing.fake_core")
WAIT_S = 20.0
VOCAB_SIZE = 251  # of the fake core: nearly all bytes, and a prime, so that 150 tokens pass before they settle


def fake_model(names: tuple[str, ...] = ("fake", "alias"), pooling: Pooling = "auto") -> ServedModel:
    """With a pooling, it embeds too: the fake executor's vectors, which may be cut to two dimensions."""
    embedding = None if pooling == "auto" else Embedding(4, pooling, normalize=False, matryoshka=(2,))
    return ServedModel(
        capabilities=Capabilities(generates=True, embedding=embedding),
        names=names,
        tokenizer=byte_tokenizer(),
        architecture="FakeForCausalLM",
        revision="1",
        created=1_700_000_000,
        chat_templates={"default": "{{ messages }}"},
        default_sampling={"top_k": 40.0},
        tokenizer_files=lambda: {"tokenizer.json": b"{}" + b" " * (5 << 19), "empty.json": b""},
    )


def fake_config(
    *,
    server: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    parallel: dict[str, Any] | None = None,
    pooling: Pooling = "auto",
) -> InferdConfig:
    """Free ports, a short settle time."""
    values: dict[str, Any] = {"port": 0, "metrics_port": 0, "drain_settle_s": 0.1}
    return InferdConfig(
        engine=EngineConfig(
            model=ModelConfig(source="fake", path="fake", pooling=pooling),
            scheduler=SchedulerConfig(**(scheduler or {})),
            parallel=ParallelConfig(**(parallel or {})),
        ),
        server=ServerConfig(**(values | (server or {}))),
    )


async def main() -> None:
    config = msgspec.json.decode(os.environ[CONFIG_VARIABLE], type=InferdConfig)
    configure_logging()
    model = fake_model(pooling=config.engine.model.pooling)
    await run_daemon(config, lambda: model, StopSignals(), command=CORE, ready=announce)


def announce(listening: Listening) -> None:
    sys.stdout.write(json.dumps(asdict(listening)) + "\n")
    sys.stdout.flush()


class DaemonProcess:
    """The daemon in a process of its own. `core` are FakeCoreOptions as a dict. A context manager: ends all at exit."""

    def __init__(self, config: InferdConfig, core: dict[str, Any] | None = None) -> None:
        root = Path(__file__).resolve().parents[2]
        env = os.environ | {
            CONFIG_VARIABLE: msgspec.json.encode(config).decode(),
            "INFERD_FAKE_CORE": json.dumps({"vocab_size": VOCAB_SIZE} | (core or {})),
            "PYTHONPATH": str(root),
        }
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "inferd.testing.fake_daemon"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []  # of stderr
        self._announced: queue.Queue[str] = queue.Queue()
        self._threads = [threading.Thread(target=self._read_stderr), threading.Thread(target=self._read_stdout)]
        for thread in self._threads:
            thread.start()
        self.port = config.server.port
        self.metrics_port = config.server.metrics_port
        self.admin: str | None = None

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.wait()

    def wait_ready(self) -> DaemonProcess:
        """Until it serves."""
        line = self._announced.get(timeout=WAIT_S)
        assert line, "the daemon ended:\n" + "\n".join(self.lines)
        listening = json.loads(line)
        self.port, self.metrics_port = listening["port"], listening["metrics_port"]
        self.admin = listening["admin"]
        return self

    def wait(self) -> int:
        """Until it is gone; the exit status."""
        status = self.process.wait(timeout=WAIT_S)
        for thread in self._threads:
            thread.join()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()
        return status

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def core_pids(self) -> list[int]:
        """Child processes."""
        pid = self.process.pid
        try:
            return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except OSError:
            return []

    def metrics(self) -> dict[str, float]:
        """Sample name with labels, but without model_name -> value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            text: str = response.read().decode()
        samples = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {name.replace('{model_name="fake"}', ""): float(value) for name, _, value in samples}

    def wait_metrics(self, **expected: float) -> dict[str, float]:
        """Until every named metric (without inferd_) has its value."""
        deadline = time.monotonic() + WAIT_S
        while True:
            metrics = self.metrics()
            if all(metrics[f"inferd_{name}"] == value for name, value in expected.items()):
                return metrics
            assert time.monotonic() < deadline, {name: metrics[f"inferd_{name}"] for name in expected}

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._announced.put(line)
        self._announced.put("")


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except StartupError as error:
        sys.exit(f"inferd: {error}")
