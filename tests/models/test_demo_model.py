"""The demo model: greedy tokens are those that transformers computes from the same GGUF file in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/demo_greedy.json"


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def driver(demo_gguf: Path, make_driver: Callable[[Path], Any]) -> Any:
    return make_driver(demo_gguf)


def test_greedy_tokens(driver: Any, golden: list[dict[str, Any]], run_type: type) -> None:
    """Three prompts at once, in chunks of 16."""
    chosen = [golden[index] for index in (0, 5, 17)]
    runs = [run_type(case["prompt"], max_tokens=16) for case in chosen]
    assert driver.run(runs, chunk=16) == [case["tokens"][:16] for case in chosen]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_greedy_tokens_of_20_prompts(driver: Any, golden: list[dict[str, Any]], run_type: type) -> None:
    """64 tokens each: alone, all at once, and with the prompts in chunks of 16."""
    expected = [case["tokens"] for case in golden]

    def runs() -> list[Any]:
        return [run_type(case["prompt"], max_tokens=64) for case in golden]

    assert [driver.run([run])[0] for run in runs()] == expected
    assert driver.run(runs()) == expected
    assert driver.run(runs(), chunk=16) == expected


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_golden_tokens_are_transformers(demo_gguf: Path, tmp_path: Path) -> None:
    written = tmp_path / "golden.json"
    subprocess.run([sys.executable, ROOT / "tools/make_golden.py", demo_gguf, written], check=True)
    assert json.loads(written.read_text()) == json.loads(GOLDEN.read_text())
