"""`inferd` as a command: exit statuses, one line of error, what is loaded."""

from __future__ import annotations

import subprocess
import sys

import pytest

import inferd
from inferd.cli.main import main


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["serve"], 2, "MODEL is missing"),
        (["srve", "demo"], 2, "unknown command 'srve'; did you mean 'serve'?"),
        (["serve", "demo", "--host", "0.0.0.0"], 1, "--host 0.0.0.0 is reachable from other machines"),
        (["up", "demo", "--host", "::"], 1, "--host :: is reachable from other machines"),
        (["serve", "demo", "--max-num-batched-tokens", "8"], 1, "must be at least --max-num-seqs (64)"),
        (["up", "demo", "--port", "50051"], 2, "must be two ports"),
    ],
)
def test_failures_are_one_line_and_a_status(
    argv: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("inferd: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_usage_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in ("serve", "up", "health", "version"))


def test_version_names_the_release(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    assert capsys.readouterr().out.startswith(f"inferd {inferd.__version__} (Python 3.")


def test_the_module_runs_and_loads_no_torch() -> None:
    code = "import sys, inferd.cli.main as m; m.main(['serve', '--nope']); print(sorted(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "unknown flag --nope" in result.stderr
    assert not {"'torch'", "'grpc'", "'numpy'"} & set(result.stdout.strip("[]\n").split(", "))


def test_health_of_nobody_is_a_failure(capsys: pytest.CaptureFixture[str], free_port: int) -> None:
    assert main(["health", "--backend", f"127.0.0.1:{free_port}", "--timeout", "5"]) == 1
    assert "UNAVAILABLE" in capsys.readouterr().err
