"""As a person would, with buf curl and no .proto at hand: list, describe and call every RPC that is built."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import SEED, as_text, expected_tokens

INFERENCE, MODELS = "inferd.v1.InferenceService", "inferd.v1.ModelService"
GENERATE = {"prompt": {"text": "hello"}, "sampling": {"seed": str(SEED)}, "stop": {"maxTokens": 8}}


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"
    return subprocess.run(
        [command, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def call(daemon: DaemonProcess, method: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    """The response messages."""
    url = f"http://{daemon.address}/{method}"
    done = buf("-d", json.dumps(data), url)
    assert done.returncode == 0, done.stderr
    messages, decoder, text = [], json.JSONDecoder(), done.stdout.strip()
    while text:
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:].strip()
    return messages


def test_services_and_methods_are_listed(daemon: DaemonProcess) -> None:
    url = f"http://{daemon.address}"
    services = buf("--list-services", url).stdout.split()
    methods = buf("--list-methods", url).stdout.split()

    assert set(services) == {INFERENCE, MODELS, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert {f"{INFERENCE}/Generate", f"{MODELS}/GetServerInfo", "grpc.health.v1.Health/Watch"} <= set(methods)


def test_every_built_rpc_answers(daemon: DaemonProcess) -> None:
    stream = call(daemon, f"{INFERENCE}/Generate", GENERATE)
    text = "".join(delta.get("text", "") for message in stream for delta in message.get("choices", []))
    assert text == as_text(expected_tokens(8))

    tokenized = call(daemon, f"{INFERENCE}/Tokenize", {"inputs": [{"text": "hi"}]})
    assert tokenized[0]["inputs"][0]["tokenIds"] == [104, 105]
    assert call(daemon, f"{INFERENCE}/Detokenize", {"inputs": [{"ids": [104, 105]}]}) == [{"texts": ["hi"]}]
    assert call(daemon, f"{MODELS}/ListModels", {})[0]["models"][0]["name"] == "fake"
    assert call(daemon, f"{MODELS}/GetModelInfo", {})[0]["card"]["name"] == "fake"
    assert call(daemon, f"{MODELS}/GetServerInfo", {})[0]["instanceId"]
    assert call(daemon, "grpc.health.v1.Health/Check", {}) == [{"status": "SERVING"}]


def test_error_details_resolve(daemon: DaemonProcess) -> None:
    bad = json.dumps(GENERATE | {"sampling": {"temperature": 9}})
    url = f"http://{daemon.address}/{INFERENCE}/Generate"
    done = buf("-d", bad, url)
    error = json.loads(done.stderr)

    assert done.returncode == 3 << 3
    assert error["code"] == "invalid_argument"
    assert {detail["type"] for detail in error["details"]} == {
        "google.rpc.ErrorInfo",
        "google.rpc.BadRequest",
        "google.rpc.RequestInfo",
    }


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_both_versions_answer(channel: grpc.Channel, version: str) -> None:
    method = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = method(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol="google.rpc.ErrorInfo")]))
    assert answer.file_descriptor_response.file_descriptor_proto


def test_reflection_can_be_off() -> None:
    with DaemonProcess(fake_config(server={"reflection": False})) as daemon:
        daemon.wait_ready()
        done = buf("--list-services", f"http://{daemon.address}")
    assert done.returncode != 0
