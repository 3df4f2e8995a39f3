"""Virtual environments and node_modules under .clients/, made once and again when what they are made of changes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".clients"


def python_environment(name: str, requirements: Path, *, over_project: bool = False) -> str:
    """The interpreter of .clients/NAME. over_project: what the project's own environment has (torch, transformers) is
    seen too, below what `requirements` installs; these are then complete, without dependencies."""
    folder = PLACE / name
    python = folder / "bin" / "python"

    def make() -> None:
        subprocess.run([sys.executable, "-P", "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if over_project:
            (site_packages,) = (folder / "lib").glob("python*/site-packages")
            (site_packages / "project.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
            pip.append("--no-deps")
        subprocess.run([*pip, "--requirement", str(requirements)], check=True)

    when_changed(folder, requirements, make)
    return str(python)


def node_environment(name: str, source: Path) -> Path:
    """.clients/NAME with a copy of `source` and its node_modules: an ES module finds its packages beside itself."""
    folder = PLACE / name

    def make() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        subprocess.run(["npm", "ci", "--silent", "--no-audit", "--no-fund"], cwd=folder, check=True)

    when_changed(folder, source / "package-lock.json", make)
    for script in source.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder


def when_changed(folder: Path, wanted: Path, make: Callable[[], None]) -> None:
    """Calls `make` unless `folder` was made from the text that `wanted` has now."""
    stamp, text = folder / "made-from", wanted.read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != text:
        print(f"installing {folder.name}", flush=True)
        make()
        stamp.write_text(text, encoding="utf-8")
