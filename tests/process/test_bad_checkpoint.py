"""`inferd serve` and `inferd up` on a checkpoint that cannot be served: one readable line, and no port is ever opened.

Each port is taken by the test. A daemon that went for its port before it had looked at the checkpoint would complain of
the port instead.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from inferd.testing.product import ROOT

CONFIG = '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 8}'
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "gateway", ROOT / "kernels")))


@pytest.fixture
def taken_ports() -> Iterator[tuple[int, int]]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
            each.listen()
        first, second = (each.getsockname()[1] for each in sockets)
        yield first, second


def folder(path: Path, config: str) -> Path:
    path.mkdir()
    (path / "config.json").write_text(config)
    save_file({"model.embed_tokens.weight": np.zeros((8, 8), np.float32)}, path / "model.safetensors")
    return path


def broken(kind: str, path: Path, demo: Path) -> Path:
    if kind == "truncated gguf":
        with demo.open("rb") as whole:
            path.write_bytes(whole.read(1 << 21))
    elif kind == "truncated safetensors":
        weights = folder(path, CONFIG) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-5])
    elif kind == "corrupt config":
        folder(path, CONFIG[:-9])
    elif kind == "corrupt gguf":
        path.write_bytes(b"GGUF" + bytes(range(256)))
    return path


@pytest.mark.parametrize(
    ("command", "kind", "said"),
    [
        ("serve", "missing", "no such folder or file"),
        ("serve", "truncated gguf", "truncated or corrupt"),
        ("serve", "truncated safetensors", "truncated or corrupt"),
        ("serve", "corrupt config", "config.json"),
        ("serve", "corrupt gguf", "version"),
        ("up", "truncated gguf", "truncated or corrupt"),
    ],
)
def test_one_line_a_status_and_no_port(
    command: str, kind: str, said: str, tmp_path: Path, demo_gguf: Path, taken_ports: tuple[int, int]
) -> None:
    model = broken(kind, tmp_path / f"m{'.gguf' if 'gguf' in kind else ''}", demo_gguf)
    http, grpc = taken_ports
    ports = ["--port", str(grpc)] if command == "serve" else ["--port", str(http), "--grpc-port", str(grpc)]
    done = subprocess.run(
        [sys.executable, "-m", "inferd", command, str(model), *ports, "--metrics-port", "0"],
        env={**os.environ, "PYTHONPATH": PATH},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("inferd: error: ")
    assert said in line
    assert str(model) in line
