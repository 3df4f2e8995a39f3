"""The import contracts hold, and break when they should."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("inferd", "gateway/inferd_gateway", "kernels/inferd_kernels")


def lint_imports(root: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    path = ":".join(str(root / folder) for folder in (".", "gateway", "kernels"))
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100, env={"PYTHONPATH": path})


def test_contracts_hold() -> None:
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("inferd/config.py", "import inferd.request", "Layers of the daemon"),
        ("inferd/executor/base.py", "import torch", "The control plane loads no torch"),
        ("inferd/messages.py", "import grpc", "Only the server speaks gRPC"),
        ("inferd/executor/base.py", "import inferd.v1", "Only the server speaks gRPC"),
        ("gateway/inferd_gateway/__init__.py", "import inferd.config", "The gateway knows the contract"),
        ("inferd/errors.py", "import inferd_gateway", "The daemon does not know the gateway"),
        ("kernels/inferd_kernels/ops.py", "import inferd.config", "Kernels know nothing of inferd"),
        ("inferd/newcomer.py", "", "Layers of the daemon"),
    ],
)
def test_a_forbidden_import_breaks_its_contract(tmp_path: Path, module: str, line: str, contract: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / ".importlinter", tmp_path)
    with (tmp_path / module).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    broken = [report for report in result.stdout.splitlines() if " BROKEN" in report]
    assert any(report.startswith(contract) for report in broken), result.stdout
