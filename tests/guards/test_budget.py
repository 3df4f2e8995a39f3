"""The size budget holds, and its checks find what they are for."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def budget() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_budget", ROOT / "tools" / "check_budget.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_repository_is_within_budget(budget: ModuleType) -> None:
    assert budget.check_tree(ROOT) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def f():\n" + "    x = 1\n" * 80, "f has 81 lines, at most 80"),
        ("def f(x):\n" + "    x = 1 if x else 2\n" * 16, "f has 16 branches, at most 15"),
        ("class C:\n" + "    x = 1\n" * 350, "class C has 351 lines, at most 350"),
        ("class C:\n" + "".join(f"    def m{i}(self): ...\n" for i in range(31)), "class C has 31 methods, at most 30"),
        (
            "class C:\n    def __init__(self):\n" + "".join(f"        self.x{i} = 0\n" for i in range(15)),
            "class C has 15 attributes, at most 14",
        ),
        ("x = f()  # type: ignore", "`type: ignore` needs a code and a reason"),
        ("x = f()  # type: ignore[arg-type]", "`type: ignore` needs a code and a reason"),
    ],
)
def test_what_is_too_large_is_named(budget: ModuleType, source: str, message: str) -> None:
    (problem,) = budget.check_source(source)
    assert problem.endswith(message) or message in problem


def test_what_fits_passes(budget: ModuleType) -> None:
    kernel = "@triton.jit\ndef k(a):\n" + "    x = 1 if a else 2\n" * 140
    assert list(budget.check_source(kernel)) == []
    assert list(budget.broad_excepts(ast.parse("try:\n    f()\nexcept BaseException:\n    close()\n    raise\n"))) == []
    assert list(budget.check_source("x = f()  # type: ignore[arg-type]  # stubs lack the overload\n")) == []


def test_long_files_and_broad_excepts_are_named(budget: ModuleType, tmp_path: Path) -> None:
    package = tmp_path / "inferd"
    (package / "v1").mkdir(parents=True)
    (package / "v1" / "generated.py").write_text("x = 1\n" * 700)
    broad = (
        "try:\n    pass\nexcept Exception:\n    pass\ntry:\n    pass\nexcept (ValueError, BaseException):\n    pass\n"
    )
    for name in ("a.py", "b.py", "d.py"):
        (package / name).write_text(broad)
    (package / "c.py").write_text("x = 1\n" * 601)
    assert budget.check_tree(tmp_path) == [
        "inferd/c.py: 601 lines, at most 600",
        "6 `except Exception`, at most 5: inferd/a.py:3, inferd/a.py:7, inferd/b.py:3, inferd/b.py:7, inferd/d.py:3, "
        "inferd/d.py:7",
    ]
