"""The benchmark measures what it says: limits of the machine, and calls that really run."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from inferd_kernels.cpu.bench import Limits, attention_work, best_time, measure, measure_limits, row_work, sample_work
from inferd_kernels.cpu.build import BuildError
from inferd_kernels.cpu.native import NativeOps

from inferd.cli.main import main


def test_limits_are_those_of_a_computer(ops: NativeOps) -> None:
    limits = measure_limits(ops, seconds=0.0)
    assert 1e8 < limits.read < 1e13
    assert 1e8 < limits.float_ops < 1e14
    assert 1e8 < limits.byte_ops < 1e15


@pytest.fixture
def fast(engines: dict[tuple[str, int], NativeOps]) -> NativeOps:
    return list(engines.values())[-1]


def test_every_work_runs(fast: NativeOps) -> None:
    for work in itertools.chain(attention_work(fast), row_work(fast), sample_work(fast)):
        assert best_time(work.run, 0.0) > 0


def test_the_share_is_that_of_the_slower_limit(fast: NativeOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd_kernels.cpu.bench.COPIES_BYTES", 0)
    (first,) = itertools.islice(measure(fast, Limits(1e9, 1e12, 1e12), seconds=0.0), 1)
    assert first.op == "linear q4_1"
    assert first.bytes_per_second * first.seconds > 3072 * 576 / 2
    assert abs(first.share - first.bytes_per_second / 1e9) < 1e-6


def test_every_packed_format_is_measured(fast: NativeOps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferd_kernels.cpu.bench.COPIES_BYTES", 0)
    rows = measure(fast, Limits(1e9, 1e12, 1e12), seconds=0.0, match="linear q6_k")
    assert [row.shape for row in rows] == ["1x1024 -> 2048", "16x1024 -> 2048"]


def test_the_command_prints_a_line_per_op_and_writes_the_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ops.json"
    assert main(["bench", "ops", "--threads", "1", "--match", "activate", "--seconds", "0.1", "--json", str(out)]) == 0
    limits, header, *rows = capsys.readouterr().out.splitlines()
    assert "1 threads: reads " in limits
    assert header.split()[:2] == ["op", "shape"]
    stored = json.loads(out.read_text())
    assert [row["shape"] for row in stored["ops"]] == ["1x3072, silu", "16x3072, silu", "512x3072, silu"]
    assert all(row.startswith("activate_gated") and "%" in row for row in rows)
    assert stored["limits"]["read"] > 1e8


@pytest.mark.parametrize(
    ("error", "reason"), [(BuildError("no C++ compiler found"), "no C++ compiler"), (ValueError("isa 'x'"), "isa 'x'")]
)
def test_without_native_ops_the_command_fails_in_one_line(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("inferd.bench.ops.NativeEngine", refuse)
    assert main(["bench", "ops"]) == 1
    assert capsys.readouterr().err.startswith(f"inferd: error: the native ops are not available: {reason}")
