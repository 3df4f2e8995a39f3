"""No Python file of the working directory is run, by no process of the product: it may be a stranger's checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from inferd.executor.rank_processes import COMMAND as RANK_COMMAND
from inferd.front.constraints import COMMAND as CONSTRAINT_COMMAND
from inferd.front.core_link import CORE_COMMAND
from inferd.testing.product import ROOT, free_port, is_healthy, wait_until

INSTALLED = (ROOT, ROOT / "gateway", ROOT / "kernels")
NAMES = [
    "argparse", "asyncio", "ctypes", "dataclasses", "decimal", "fastapi", "fractions", "gguf", "google", "grpc",
    "hashlib", "http", "huggingface_hub", "inferd_gateway", "inferd_kernels", "jinja2", "json", "llguidance",
    "logging", "msgspec", "numpy", "pip", "prometheus_client", "queue", "resource", "secrets", "socket", "ssl",
    "statistics", "struct", "subprocess", "tempfile", "threading", "tokenizers", "torch", "typing",
    "typing_extensions", "uuid", "uvicorn", "uvloop", "yaml", "zipfile",
]  # fmt: skip
ARRAY = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": False}


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Path]:
    """A folder of modules that leave a trace when they are run; there must be none at the end."""
    trace = tmp_path / "trace"
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('{name} ')\nraise SystemExit(9)\n")
    yield folder
    assert not trace.exists(), f"run from the working directory: {trace.read_text()}"


def environment(*extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, INSTALLED), *extra])}


def script(module: str) -> str:
    """What an installed command does. The interpreter's own directory is where a command's folder would be."""
    return f"import sys; sys.path[0] = {sys.prefix!r}; from {module}.__main__ import main; sys.exit(main())"


@contextmanager
def running(command: tuple[str, ...], folder: Path, env: dict[str, str], url: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env)
    try:
        wait_until(lambda: is_healthy(url) or process.poll() is not None, 120, "ready")
        assert process.poll() is None
        yield
    finally:
        process.terminate()
        process.wait(40)


@pytest.mark.parametrize("form", ["module", "command"])
@pytest.mark.parametrize("empty_entry", [False, True], ids=["", "empty entry of PYTHONPATH"])
def test_up(form: str, empty_entry: bool, hostile: Path, demo_gguf: Path) -> None:
    """Daemon, core, gateway, template and constraint processes."""
    http, grpc = free_port(), free_port()
    flags = [
        "up",
        str(demo_gguf),
        f"--port={http}",
        f"--grpc-port={grpc}",
        "--metrics-port=0",
        "--served-model-name=demo",
    ]
    start = ("-m", "inferd") if form == "module" else ("-c", script("inferd"))
    url = f"http://127.0.0.1:{http}"
    with running((*start, *flags), hostile, environment(*([""] if empty_entry else [])), url):
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json={
                "model": "demo",
                "messages": [{"role": "user", "content": "Hi"}],
                "max_tokens": 16,
                "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": ARRAY}},
            },
            timeout=60,
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("command", [CORE_COMMAND, CONSTRAINT_COMMAND, RANK_COMMAND], ids=lambda command: command[-1])
def test_children(command: tuple[str, ...], hostile: Path) -> None:
    subprocess.run([*command, "--help"], cwd=hostile, env=environment(), stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("module", ["inferd", "inferd_gateway"])
def test_modules(module: str, hostile: Path) -> None:
    (hostile / "inferd_gateway.py").unlink()  # the one that is asked for by name
    subprocess.run([sys.executable, "-m", module, "--help"], cwd=hostile, env=environment(""), check=True)


PRINT_PATH = """
from inferd.working_directory import keep_out
import os, sys
keep_out()
print(os.getcwd() in sys.path or "" in sys.path, os.environ["PYTHONPATH"], os.environ["PYTHONSAFEPATH"])
"""


def path_after(cwd: Path, pythonpath: str) -> list[str]:
    command = [sys.executable, "-c", PRINT_PATH]
    env = {**os.environ, "PYTHONPATH": pythonpath}
    return subprocess.run(command, cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout.split()


def test_what_is_named_stays(tmp_path: Path) -> None:
    assert path_after(tmp_path, f"{ROOT}::/x:") == ["False", f"{ROOT}:/x", "1"]
    assert path_after(tmp_path, f"{tmp_path}:{ROOT}") == ["True", f"{tmp_path}:{ROOT}", "1"]
    assert path_after(tmp_path, f".:{ROOT}") == ["True", f".:{ROOT}", "1"]


def test_a_source_tree_that_is_not_installed_is_handed_on() -> None:
    is_there, home, _ = path_after(ROOT, "")
    assert (is_there, home) == ("True", str(ROOT))
