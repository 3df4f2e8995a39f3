"""As a person would, with buf curl and no .proto at hand: list, describe and call every RPC that is built."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from grpc_reflection.v1alpha import reflection_pb2

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import SEED, as_text, expected_tokens
from inferd.v1 import admin_pb2, common_pb2, inference_pb2, model_pb2

INFERENCE, MODELS, ADMIN = (f"inferd.v1.{name}Service" for name in ("Inference", "Model", "Admin"))
GENERATE = {"prompt": {"text": "hello"}, "sampling": {"seed": str(SEED)}, "stop": {"maxTokens": 8}}


def buf(*arguments: str, data: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), input=data, capture_output=True, text=True, timeout=20, check=False)


def command(*arguments: str) -> list[str]:
    buf = shutil.which("buf", path=str(Path(sys.executable).parent)) or "buf"
    return [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments]


def decoded(text: str) -> list[dict[str, Any]]:
    """The messages of an output that has come whole."""
    messages, decoder = [], json.JSONDecoder()
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        messages.append(message)
        text = text[end:]
    return messages


def call(address: str, method: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """The response messages."""
    done = buf("-d", "@-", f"http://{address}/{method}", data="".join(map(json.dumps, requests)))
    assert done.returncode == 0, done.stderr
    return decoded(done.stdout)


def first_of(address: str, method: str, request: dict[str, Any]) -> dict[str, Any]:
    """The first message of a stream that the server never ends."""
    watching = command("-d", json.dumps(request), f"http://{address}/{method}")
    with subprocess.Popen(watching, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        try:
            for line in process.stdout:
                text += line
                with contextlib.suppress(json.JSONDecodeError):
                    return decoded(text)[0]
        finally:
            process.kill()
    raise AssertionError(f"{method} ended without a message: {text}")


@pytest.fixture(scope="module")
def complete() -> Iterator[DaemonProcess]:
    """A daemon with everything that can be asked: it generates, embeds and has an admin listener."""
    config = fake_config(pooling="mean", server={"admin_listen": "127.0.0.1:0"})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.001}}) as process:
        yield process.wait_ready()


def test_services_are_listed(complete: DaemonProcess) -> None:
    shared = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    assert set(buf("--list-services", f"http://{complete.address}").stdout.split()) == {INFERENCE, MODELS, *shared}
    assert set(buf("--list-services", f"http://{complete.admin}").stdout.split()) == {ADMIN, *shared}


def streamed(request: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"item_id": "7", "request": request, **fields}


TEXTS = {"inputs": [{"text": "hi"}]}
SCORE = {"rerank": {"query": {"text": "hi"}, "documents": [{"text": "ho"}]}}
CALLS: dict[str, tuple[list[dict[str, Any]], str]] = {  # the requests, and what the first answer must hold
    f"{INFERENCE}/Generate": ([GENERATE], "prompt"),
    f"{INFERENCE}/GenerateMux": ([{"stream_id": "7", "start": {"request": GENERATE}}], "items"),
    f"{INFERENCE}/Embed": ([TEXTS], "vectors"),
    f"{INFERENCE}/EmbedStream": ([streamed(TEXTS)], "response"),
    f"{INFERENCE}/Score": ([SCORE], "scores"),
    f"{INFERENCE}/ScoreStream": ([streamed(SCORE)], "response"),
    f"{INFERENCE}/Tokenize": ([TEXTS], "inputs"),
    f"{INFERENCE}/TokenizeStream": ([streamed(TEXTS)], "response"),
    f"{INFERENCE}/Detokenize": ([{"inputs": [{"ids": [104, 105]}]}], "texts"),
    f"{MODELS}/ListModels": ([{}], "models"),
    f"{MODELS}/GetModelInfo": ([{}], "card"),
    f"{MODELS}/DownloadTokenizer": ([{}], "fileName"),
    f"{MODELS}/GetServerInfo": ([{}], "instanceId"),
    f"{ADMIN}/AbortRequests": ([{"request_ids": ["nobody"]}], "notFound"),
    f"{ADMIN}/Drain": ([{}], "idle"),
    f"{ADMIN}/Undrain": ([{}], ""),
    f"{ADMIN}/ClearPrefixCache": ([{}], ""),
    f"{ADMIN}/DumpState": ([{}], ""),
    "grpc.health.v1.Health/Check": ([{}], "status"),
}
ENDLESS = {f"{ADMIN}/WatchLoad", "grpc.health.v1.Health/Watch"}
CONTRACT = [
    method
    for file in (inference_pb2, model_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]


def test_calls_are_those_that_are_listed(complete: DaemonProcess) -> None:
    listed = {
        method
        for address in (complete.address, complete.admin)
        for method in buf("--list-methods", f"http://{address}").stdout.split()
        if "Reflection" not in method
    }
    assert set(CALLS) | ENDLESS == listed
    assert {f"{method.containing_service.full_name}/{method.name}" for method in CONTRACT} < listed


@pytest.mark.parametrize("method", CALLS)
def test_every_rpc_answers(complete: DaemonProcess, method: str) -> None:
    requests, expected = CALLS[method]
    address = complete.admin if method.startswith(ADMIN) else complete.address
    first, *_ = call(str(address), method, *requests)
    assert not expected or expected in first
    if method == f"{ADMIN}/Drain":
        call(str(address), f"{ADMIN}/Undrain", {})


@pytest.mark.parametrize("method", CONTRACT, ids=lambda method: method.name)
def test_an_empty_request_is_answered_or_told_what_it_lacks(complete: DaemonProcess, method: MethodDescriptor) -> None:
    service = method.containing_service.full_name
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    with grpc.insecure_channel(str(complete.admin if service == ADMIN else complete.address)) as channel:
        try:
            answer = getattr(channel, shape)(f"/{service}/{method.name}")(
                iter(()) if method.client_streaming else b"", timeout=10
            )
            if method.server_streaming:
                next(answer, None)
                answer.cancel()
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
    if method.name == "Drain":
        call(str(complete.admin), f"{ADMIN}/Undrain", {})
    assert code in {"OK", "INVALID_ARGUMENT"}


@pytest.mark.parametrize("method", sorted(ENDLESS))
def test_every_endless_stream_begins(complete: DaemonProcess, method: str) -> None:
    address = complete.admin if method.startswith(ADMIN) else complete.address
    assert first_of(str(address), method, {})


def test_a_generation_is_that_of_a_stub(daemon: DaemonProcess) -> None:
    stream = call(daemon.address, f"{INFERENCE}/Generate", GENERATE)
    text = "".join(delta.get("text", "") for message in stream for delta in message.get("choices", []))
    assert text == as_text(expected_tokens(8))


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


def described(channel: grpc.Channel, symbol: str) -> reflection_pb2.ServerReflectionResponse:
    method = channel.stream_stream(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    (answer,) = method(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)]))
    return answer


def symbols_of(message: Descriptor) -> Iterator[str]:
    yield message.full_name
    yield from (part.full_name for part in (*message.fields, *message.oneofs))
    for enum in message.enum_types:
        yield from (f"{message.full_name}.{value.name}" for value in enum.values)
    for nested in message.nested_types:
        yield from symbols_of(nested)


def test_everything_in_the_contract_can_be_described(complete: DaemonProcess) -> None:
    """By its full name, as `grpcurl describe` asks: services, methods, messages, fields, enums and their values."""
    wanted: set[tuple[str, str]] = set()
    for file in (common_pb2.DESCRIPTOR, inference_pb2.DESCRIPTOR, model_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR):
        names = [name for message in file.message_types_by_name.values() for name in symbols_of(message)]
        for enum in file.enum_types_by_name.values():
            names.append(enum.full_name)
            names += [f"{scope}.{value.name}" for value in enum.values for scope in (file.package, enum.full_name)]
        for service in file.services_by_name.values():
            names += [service.full_name, *(method.full_name for method in service.methods)]
        wanted |= {(name, file.name) for name in names}
    assert ("inferd.v1.InferenceService.Generate", "inferd/v1/inference.proto") in wanted
    with grpc.insecure_channel(complete.address) as channel:
        for name, file_name in wanted:
            files = described(channel, name).file_descriptor_response.file_descriptor_proto
            assert files, name
            assert file_name in {descriptor_pb2.FileDescriptorProto.FromString(one).name for one in files}


@pytest.mark.parametrize(
    "symbol",
    ["inferd.v1.InferenceService.Nothing", "inferd.v1.FinishReason.NOTHING", "inferd.v1", "Generate", "", "a.b.c",
     "inferd.v1.GenerateRequest.Generate"],
)  # fmt: skip
def test_what_is_not_there_is_not_found(channel: grpc.Channel, symbol: str) -> None:
    assert described(channel, symbol).error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_reflection_can_be_off() -> None:
    with DaemonProcess(fake_config(server={"reflection": False})) as daemon:
        daemon.wait_ready()
        done = buf("--list-services", f"http://{daemon.address}")
    assert done.returncode != 0
