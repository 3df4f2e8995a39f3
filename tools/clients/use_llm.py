"""llm, the command line, as its users set it up: a file that names the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.clients import probe

LLM = str(Path(sys.executable).with_name("llm"))
FUNCTIONS = 'def population(city: str) -> int:\n    """How many live in a city."""\n    return 2000000\n'


def write_models(folder: Path) -> None:
    """JSON is YAML."""
    entry = {"api_base": probe.BASE_URL, "api_key_name": "inferd", "supports_schema": True, "supports_tools": True}
    models = [
        entry | {"model_id": "demo", "model_name": probe.MODEL},
        entry | {"model_id": "missing", "model_name": probe.WRONG_MODEL},
    ]
    (folder / "extra-openai-models.yaml").write_text(json.dumps(models))


HOME = tempfile.TemporaryDirectory()
write_models(Path(HOME.name))
ENVIRONMENT = os.environ | {"LLM_USER_PATH": HOME.name}


def llm(*arguments: str, key: str = probe.KEY, model: str = "demo") -> subprocess.CompletedProcess[str]:
    options = ["-m", model, "--key", key, "-o", "temperature", "0", "--no-log"]
    return subprocess.run(
        [LLM, "prompt", *options, *arguments], env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )


def answer(*arguments: str) -> str:
    done = llm("-o", "max_tokens", "80", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def whole() -> None:
    assert probe.ANSWER in answer("--no-stream", probe.QUESTION)


def stream() -> None:
    assert answer(probe.QUESTION) == answer("--no-stream", probe.QUESTION)


def abort() -> None:
    before = probe.aborted_choices()
    asked = ["-m", "demo", "--key", probe.KEY, "--no-log", "-o", "max_tokens", str(probe.LONG_TOKENS)]
    # No end-of-text: its token, and that of <|endoftext|>, cannot be drawn.
    asked += ["-o", "logit_bias", json.dumps({"2": -100, "0": -100})]
    with subprocess.Popen([LLM, "prompt", *asked, probe.QUESTION], env=ENVIRONMENT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    probe.assert_aborted(before)


def bad_key() -> None:
    done = llm(probe.QUESTION, key=probe.WRONG_KEY)
    assert done.returncode == 1
    assert "401" in done.stderr


def unknown_model() -> None:
    done = llm(probe.QUESTION, model="missing")
    assert done.returncode == 1
    assert probe.WRONG_MODEL in done.stderr
    assert "404" in done.stderr


def structured() -> None:
    assert probe.is_city(json.loads(answer("--schema", json.dumps(probe.CITY), probe.QUESTION)))


def tools() -> None:
    """It offers tools and never forces them; a model of this size answers in words."""
    assert answer("--functions", FUNCTIONS, probe.QUESTION)


probe.report(
    {
        "whole": whole,
        "stream": stream,
        "abort": abort,
        "bad key": bad_key,
        "unknown model": unknown_model,
        "structured": structured,
        "tools": tools,
    }
)
