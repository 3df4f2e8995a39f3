"""Tests that nobody runs are worse than none: every file holds tests that pytest collects, and none is switched off."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SWITCHES = {"pytest.skip", "pytest.xfail", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.xfail"}

FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != "conftest.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_every_file_is_collected_and_holds_tests(path: Path) -> None:
    assert path.name.startswith("test_"), "pytest does not collect this file; helpers belong to inferd.testing"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert any(function.name.startswith("test_") for function in functions)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_is_switched_off(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not names & SWITCHES
