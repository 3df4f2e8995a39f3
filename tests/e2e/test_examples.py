"""The examples of docs/ run against a live daemon, and there is one for every RPC, in Python and in Node."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd.testing.product import free_port, running_product
from inferd.v1 import admin_pb2, inference_pb2, model_pb2

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SERVICES = {
    "inference": inference_pb2.DESCRIPTOR.services_by_name["InferenceService"],
    "model": model_pb2.DESCRIPTOR.services_by_name["ModelService"],
    "admin": admin_pb2.DESCRIPTOR.services_by_name["AdminService"],
}
KEY = "secret-of-the-administrator"


@pytest.fixture(scope="module")
def addresses(demo_gguf: Path) -> Iterator[dict[str, str]]:
    admin = f"127.0.0.1:{free_port()}"
    flags = ("--pooling", "mean", "--admin-listen", admin, "--admin-api-key", KEY)
    with running_product(str(demo_gguf), *flags) as product:
        yield {"inference": product.address, "model": product.address, "admin": admin}


@pytest.mark.parametrize("name", SERVICES)
def test_every_rpc_has_a_python_example_that_runs(name: str, addresses: dict[str, str]) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), addresses[name]]
    environment = os.environ | {"INFERD_ADMIN_API_KEY": KEY}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {snake_case(method) for method in SERVICES[name].methods_by_name} <= set(shown)
    if name == "inference":
        assert "Paris" in shown["generate"]
        assert re.search("INVALID_ARGUMENT: .*temperature", shown["refused"])


def test_every_rpc_has_a_node_example() -> None:
    """They run in `make clients`."""
    names = set(re.findall(r"^  async (\w+)\(", (EXAMPLES / "node" / "examples.mjs").read_text(), re.MULTILINE))
    assert names == {method for service in SERVICES.values() for method in service.methods_by_name}


def snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
