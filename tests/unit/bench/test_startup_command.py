"""`inferd bench startup`: its own flag wherever it stands, the rest to the daemon."""

from __future__ import annotations

import argparse
import json

import pytest

import inferd.bench.startup
from inferd.bench.commands import add_commands
from inferd.bench.startup import Startup

FLAG, RUNS = ["--kv-cache-dtype", "int8"], ["--runs", "3"]


@pytest.mark.parametrize("command", [[*RUNS, "demo", *FLAG], ["demo", *RUNS, *FLAG], ["demo", *FLAG, *RUNS]])
def test_runs_before_or_behind_the_model(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[list[str]] = []

    async def measured(arguments: list[str]) -> Startup:
        started.append(arguments)
        return Startup(0.5, 1.0 + len(started), {"weights": 0.25})

    monkeypatch.setattr(inferd.bench.startup, "measure_startup", measured)
    parser = argparse.ArgumentParser()
    add_commands(parser)
    arguments = parser.parse_args(["startup", *command])
    assert arguments.run(arguments) == 0
    assert started == [["demo", *FLAG]] * 3
    figures = json.loads(capsys.readouterr().out)
    assert figures["runs"] == 3
    assert figures["serving_median_s"] == 3.0
