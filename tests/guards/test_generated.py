"""What is generated and checked in is up to date: stubs, flag tables, API references; proto/ follows its own rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from inferd.v1 import admin_pb2, common_pb2, inference_pb2, model_pb2

ROOT = Path(__file__).resolve().parents[2]


def test_stubs_are_up_to_date() -> None:
    command = [sys.executable, "tools/gen_proto.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr


def test_buf_lint() -> None:
    buf = Path(sys.executable).with_name("buf")
    result = subprocess.run([str(buf), "lint"], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", [common_pb2, inference_pb2, model_pb2, admin_pb2])
def test_generated_code_keeps_its_packages(module: ModuleType) -> None:
    """Changing one breaks whoever has generated code; `buf breaking` does not compare these options."""
    options = module.DESCRIPTOR.GetOptions()
    assert {field.name: value for field, value in options.ListFields()} == {
        "csharp_namespace": "Inferd.V1",
        "go_package": "inferd/v1;inferdv1",
        "java_multiple_files": True,
        "java_outer_classname": f"{Path(module.DESCRIPTOR.name).stem.title()}Proto",
        "java_package": "inferd.v1",
        "php_namespace": "Inferd\\V1",
        "ruby_package": "Inferd::V1",
    }


def test_documented_flags_and_fields_are_the_products() -> None:
    command = [sys.executable, "-m", "tools.gen_docs", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
