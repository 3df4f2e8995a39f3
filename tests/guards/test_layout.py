"""Import names stay ours, and light packages stay light."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "triton", "transformers", "tokenizers")


@pytest.mark.parametrize("name", ["kernels", "gateway", "proto", "tools"])
def test_container_folders_are_no_packages(name: str) -> None:
    """transformers imports any top-level `kernels`; an __init__.py in a container folder would be taken for it."""
    assert not (ROOT / name / "__init__.py").exists()
    spec = importlib.util.find_spec(name)
    assert spec is None or spec.origin is None or "site-packages" in spec.origin


def test_no_init_file_under_tests() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `statement`."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    path = ":".join(str(ROOT / folder) for folder in (".", "gateway", "kernels"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env={"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_stubs_load_nothing_but_grpc() -> None:
    loaded = loaded_by("from inferd.v1 import inference_pb2_grpc, model_pb2_grpc, admin_pb2_grpc")
    assert not loaded & {*HEAVY, "numpy", "msgspec", "fastapi"}
    assert "grpc" in loaded


def modules_of(package: str, folder: Path) -> list[str]:
    paths = sorted(path for path in folder.rglob("*.py") if path.stem not in ("__main__", "__init__"))
    return [".".join((package, *path.relative_to(folder).with_suffix("").parts)) for path in paths]


def test_the_gateway_loads_no_torch_and_no_tokenizer() -> None:
    modules = modules_of("inferd_gateway", ROOT / "gateway" / "inferd_gateway")
    loaded = loaded_by("; ".join(f"import {module}" for module in ["inferd_gateway", *modules]))
    assert not loaded & {*HEAVY, "inferd_kernels", "msgspec"}


def test_the_front_loads_no_torch() -> None:
    """The control plane, as its processes load it."""
    packages = ("cli", "server", "front", "core", "scheduler", "kv", "text", "checkpoint")
    modules = [module for package in packages for module in modules_of(f"inferd.{package}", ROOT / "inferd" / package)]
    loaded = loaded_by("; ".join(f"import {module}" for module in modules))
    assert not loaded & {"torch", "triton", "transformers"}
