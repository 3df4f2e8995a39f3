"""What README.md shows is what happens: its commands run against the demo model, and every line it shows comes back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
ASK = README[README.index("## Ask it") : README.index("## Run it")]
BLOCK = re.compile(
    r"```(?:text|json)\n(?P<shown>.*?)```|```python\n(?P<python>.*?)```|(?P<shell>(?:^    [^\n]*\n)+)", re.M | re.S
)
BLOCKS = list(BLOCK.finditer(ASK))
STEPS = [(step, after["shown"]) for step, after in pairwise(BLOCKS) if step["shown"] is None]
CHANGING = re.compile(r" *\"(requestId|\w+Us)\"|inferd_\S+ ")  # its value; the name has to be there


def run(step: re.Match[str], product) -> str:
    text = step["python"] or re.sub("^    ", "", step["shell"], flags=re.M)
    metrics = re.sub(r"/metrics$", "", product.metrics)
    for told, real in (
        ("http://127.0.0.1:8000", product.http),
        ("127.0.0.1:50051", product.address),
        ("http://127.0.0.1:9400", metrics),
    ):
        text = text.replace(told, real)
    command = [sys.executable, "-c", text] if step["python"] else ["bash", "-c", text]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def constant(line: str) -> str:
    found = CHANGING.match(line)
    return found[0] if found else line.rstrip()


@pytest.mark.parametrize(("step", "shown"), STEPS, ids=range(len(STEPS)))
def test_a_command_does_what_is_shown(product, step: re.Match[str], shown: str | None) -> None:
    assert shown is not None, f"README shows no output of {step.group()}"
    real = run(step, product)
    if shown.startswith('{"id"'):
        told, answered = json.loads(shown), json.loads(real)
        assert answered["choices"] == told["choices"]
        assert answered["usage"]["total_tokens"] == told["usage"]["total_tokens"]
        assert answered.keys() == told.keys()
        return
    lines = iter([constant(line) for line in real.splitlines()])
    missing = [line for line in shown.splitlines() if line != "..." and constant(line) not in lines]
    assert not missing


def test_every_kind_of_client_is_shown() -> None:
    for name in ("curl http", "from openai", "inference_pb2_grpc", "buf curl", "grpcurl", "/metrics"):
        assert name in ASK
    (stub,) = [step["python"] for step, _ in STEPS if step["python"] and "grpc" in step["python"]]
    assert len([line for line in stub.splitlines() if line]) <= 15
