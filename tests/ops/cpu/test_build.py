"""Building the library on first use: once for all processes, nothing half-written, and torch where it cannot be."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from inferd_kernels.cpu import build, load_native
from inferd_kernels.cpu.engine import NativeEngine
from inferd_kernels.host import usable_processors
from inferd_kernels.ops import load_ops

COMPILER = """#!/bin/sh
echo run >> {log}
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built > "$2"; shift; done
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes what it is asked for; every run is a line of its log."""
    path, log = tmp_path / "compiler", tmp_path / "log"
    path.write_text(COMPILER.format(log=log))
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


def test_processes_that_start_together_build_once(compiler: Path) -> None:
    code = "from inferd_kernels.cpu.build import cached_library; print(cached_library())"
    started = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    paths = {process.communicate(timeout=60)[0].strip() for process in started}
    (path,) = paths
    assert Path(path).read_text() == "built\n"
    units = len(build._units(Path()))
    assert compiler.read_text().count("run") == units + 1  # each unit and the link
    assert build.cached_library() == Path(path)
    leftovers = {file.name for file in Path(path).parent.iterdir()} - {Path(path).name, Path(path).name + ".lock"}
    assert leftovers == set()


def test_a_compiler_that_fails_leaves_nothing(compiler: Path, tmp_path: Path) -> None:
    (tmp_path / "compiler").write_text("#!/bin/sh\necho 'no such flag' >&2\nexit 3\n")
    with pytest.raises(build.BuildError, match=r"status 3(.|\n)*no such flag"):
        build.cached_library()
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_torch_serves_without_a_compiler_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        ops = load_ops("cpu", "auto")
    assert set(ops.backends.values()) == {"reference"}
    assert not ops.has_threads
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no C++ compiler found" in caplog.text
    with pytest.raises(ValueError, match="'native' is not available"):
        load_ops("cpu", "native")


def test_native_is_chosen_on_cpu_and_named_per_op() -> None:
    ops = load_ops("cpu", "auto", threads=1)
    torchs = {name for name, label in ops.backends.items() if label == "reference"}
    assert torchs == {
        "add_layer_norm",
        "self_attention",
        "penalize",
        "mask_tokens",
        "route",
        "rotate",
        "write_latents",
        "latent_attention",
    }
    assert {label for name, label in ops.backends.items() if name not in torchs} == {f"native-{ops.engine.isa}"}
    assert ops.has_threads
    assert set(load_ops("cpu", "reference").backends.values()) == {"reference"}
    with pytest.raises(ValueError, match="runs on cpu, not on 'cuda'"):
        load_native("cuda", None, required=True)
    with pytest.raises(ValueError, match="'fast' is not one of"):
        load_ops("cpu", "fast")


def test_the_library_changes_its_name_with_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = build.library_name()
    copy = tmp_path / "csrc"
    copy.mkdir()
    for path in build.SOURCES.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "SOURCES", copy)
    assert build.library_name() == before
    with open(copy / "vec.h", "a") as file:
        file.write("// changed\n")
    assert build.library_name() != before


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="isa 'mmx'"):
        NativeEngine(1, "mmx")
    assert NativeEngine().threads == usable_processors() <= (os.cpu_count() or 1)


def test_waiting_threads_sleep(engines: dict[tuple[str, int], object]) -> None:
    """Engines with threads that have worked cost nothing between steps."""
    assert engines
    before = time.process_time()
    threading.Event().wait(0.4)
    assert time.process_time() - before < 0.02
