"""What a plain run can say: the door refuses Triton where it cannot run, and both lanes exist."""

from pathlib import Path

import pytest
from inferd_kernels.ops import load_ops


def test_triton_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="needs a cuda device, not 'cpu'"):
        load_ops("cpu", "triton")


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ValueError, match="'cuda' is not one of"):
        load_ops("cpu", "cuda")


def test_lanes_have_tests() -> None:
    here = Path(__file__).parent
    assert list((here / "interpret").glob("test_*.py"))
    assert list((here / "compile").glob("test_*.py"))
