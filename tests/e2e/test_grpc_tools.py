"""As a person would: `buf curl` over reflection lists and calls the built RPCs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BUF = Path(sys.executable).with_name("buf")


def curl(product, method: str, body: dict | None = None, *flags: str) -> subprocess.CompletedProcess[str]:
    url = f"http://{product.address}/{method}"
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", *flags, url]
    if body is not None:
        command[-1:] = ["-d", json.dumps(body), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def test_reflection_lists_the_services_and_methods(product):
    command = [str(BUF), "curl", "--protocol", "grpc", "--http2-prior-knowledge", f"http://{product.address}"]
    services = subprocess.run([*command, "--list-services"], capture_output=True, text=True, timeout=30)
    assert {"inferd.v1.InferenceService", "inferd.v1.ModelService", "grpc.health.v1.Health"} <= set(
        services.stdout.split()
    )
    methods = subprocess.run([*command, "--list-methods"], capture_output=True, text=True, timeout=30)
    assert "inferd.v1.InferenceService/Generate" in methods.stdout.split()


@pytest.mark.parametrize(
    ("method", "body", "expected"),
    [
        ("inferd.v1.ModelService/ListModels", {}, "maxContextTokens"),
        ("inferd.v1.ModelService/GetModelInfo", {}, "chatTemplates"),
        ("inferd.v1.ModelService/GetServerInfo", {}, "kvBlocks"),
        ("inferd.v1.InferenceService/Tokenize", {"inputs": [{"text": "hello world"}]}, "tokenIds"),
        ("inferd.v1.InferenceService/Detokenize", {"inputs": [{"ids": [28120, 905]}]}, "texts"),
        (
            "inferd.v1.InferenceService/Generate",
            {"prompt": {"text": "The capital of France is"}, "stop": {"maxTokens": 5}, "sampling": {"temperature": 0}},
            "Paris",
        ),
        ("grpc.health.v1.Health/Check", {"service": "inferd.v1.InferenceService"}, "SERVING"),
    ],
)
def test_every_built_rpc_answers(product, method, body, expected):
    answer = curl(product, method, body)
    assert answer.returncode == 0, answer.stderr
    assert expected in answer.stdout


def test_a_bad_value_is_refused_with_its_field(product):
    answer = curl(
        product, "inferd.v1.InferenceService/Generate", {"prompt": {"text": "hi"}, "sampling": {"temperature": 9}}
    )
    assert answer.returncode == 24  # INVALID_ARGUMENT << 3
    assert "temperature" in answer.stderr
