"""Keys: everything but health needs one, and no way around it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from inferd.server.scopes import RPC_SCOPES
from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import collect, decode_failure, fails, make_generate
from inferd.v1 import admin_pb2, inference_pb2, model_pb2
from inferd.v1.inference_pb2_grpc import InferenceServiceStub
from inferd.v1.model_pb2_grpc import ModelServiceStub

KEYS = ("first-secret", "second-secret")


@pytest.fixture(scope="module")
def locked() -> Iterator[DaemonProcess]:
    with DaemonProcess(fake_config(server={"api_keys": KEYS})) as daemon:
        yield daemon.wait_ready()


@pytest.fixture(scope="module")
def locked_channel(locked: DaemonProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(locked.address) as channel:
        yield channel


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_every_key_opens(locked_channel: grpc.Channel, key: str, scheme: str) -> None:
    call = InferenceServiceStub(locked_channel).Generate(
        make_generate(), metadata=[("authorization", f"{scheme} {key}")]
    )
    assert collect(call)


@pytest.mark.parametrize(
    "value",
    ["Bearer wrong", "Bearer first-secre", "Bearer first-secret2", "Basic first-secret", "first-secret", "Bearer "],
)
def test_a_wrong_key_is_refused(locked_channel: grpc.Channel, value: str) -> None:
    failure = fails(InferenceServiceStub(locked_channel).Generate(make_generate(), metadata=[("authorization", value)]))
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "BAD_TOKEN")
    assert "secret" not in failure.message


def test_two_keys_are_refused(locked_channel: grpc.Channel) -> None:
    metadata = [("authorization", f"Bearer {key}") for key in KEYS]
    failure = fails(InferenceServiceStub(locked_channel).Generate(make_generate(), metadata=metadata))
    assert failure.reason == "BAD_TOKEN"


@pytest.mark.parametrize(
    "path",
    [
        "/inferd.v1.InferenceService/Generate",
        "/inferd.v1.InferenceService/Embed",
        "/inferd.v1.AdminService/DumpState",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.HealthX/Check",
        "/no.such.Service/Method",
    ],
)
def test_nothing_answers_without_a_key(locked_channel: grpc.Channel, path: str) -> None:
    failure = fails(locked_channel.stream_stream(path, None, None)(iter([b""]), timeout=5))
    assert (failure.code, failure.reason) == ("UNAUTHENTICATED", "MISSING_TOKEN")


def test_unary_calls_are_refused_too(locked_channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        ModelServiceStub(locked_channel).ListModels(model_pb2.ListModelsRequest())
    assert decode_failure(raised.value).reason == "MISSING_TOKEN"


def test_health_needs_no_key(locked_channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(locked_channel)
    for service in ("", "inferd.v1.InferenceService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=service)).status == 1
    with pytest.raises(grpc.RpcError) as raised:
        health.Check(health_pb2.HealthCheckRequest(service="no"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    unknown = health.Watch(health_pb2.HealthCheckRequest(service="no"))
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def test_keys_are_not_in_the_log(locked: DaemonProcess) -> None:
    assert locked.lines
    assert not any("secret" in line for line in locked.lines)


def line_of(daemon: DaemonProcess, request_id: str) -> str:
    deadline = time.monotonic() + 10
    while not (lines := [line for line in daemon.lines if f"request_id={request_id}" in line]):
        assert time.monotonic() < deadline
    return lines[0]


def test_refused_calls_are_logged_and_counted(locked: DaemonProcess, locked_channel: grpc.Channel) -> None:
    before = locked.metrics()
    metadata = [("authorization", "Bearer wrong"), ("x-request-id", "refused-1")]
    fails(InferenceServiceStub(locked_channel).Generate(make_generate(), metadata=metadata))
    line = line_of(locked, "refused-1")
    assert "code=UNAUTHENTICATED" in line
    assert "reason=BAD_TOKEN" in line
    after = locked.metrics()
    name = 'inferd_calls_refused_total{model_name="fake",reason="bad_token"}'
    assert after[name] == before[name] + 1


@pytest.fixture(scope="module")
def scoped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text("# keys\nplain-key\n\ninfer:the-infer-key\nobserve:watcher\nadmin:boss\ninfer:both\nadmin:both\n")
    server = {"api_key_file": str(file), "admin_api_keys": ("root",), "admin_listen": "127.0.0.1:0"}
    with DaemonProcess(fake_config(server=server)) as daemon:
        yield daemon.wait_ready()


def answer(address: str, path: str, key: str) -> str:
    """What a call gets: the reason of its refusal, else OK or the code it went on to."""
    with grpc.insecure_channel(address) as channel:
        call = channel.stream_stream(path, None, None)
        try:
            list(call(iter([b""]), timeout=5, metadata=[("authorization", f"Bearer {key}")]))
        except grpc.RpcError as error:
            return decode_failure(error).reason or error.code().name
    return "OK"


@pytest.mark.parametrize(
    ("key", "infers", "discovers", "watches", "controls"),
    [
        ("plain-key", True, True, False, False),
        ("the-infer-key", True, True, False, False),
        ("watcher", False, True, True, False),
        ("boss", False, False, True, True),
        ("root", False, False, True, True),
        ("both", True, True, True, True),
    ],
)
def test_scopes(scoped: DaemonProcess, key: str, infers: bool, discovers: bool, watches: bool, controls: bool) -> None:
    assert scoped.admin is not None
    asked = {
        (scoped.address, "/inferd.v1.InferenceService/Generate"): infers,
        (scoped.address, "/inferd.v1.ModelService/ListModels"): discovers,
        (scoped.admin, "/inferd.v1.AdminService/WatchLoad"): watches,
        (scoped.admin, "/inferd.v1.AdminService/ClearPrefixCache"): controls,
    }
    for (address, path), allowed in asked.items():
        assert (answer(address, path, key) != "FORBIDDEN") is allowed, path


def test_a_wrong_key_opens_neither_port(scoped: DaemonProcess) -> None:
    assert scoped.admin is not None
    assert answer(scoped.admin, "/inferd.v1.AdminService/Undrain", "the-infer-ke") == "BAD_TOKEN"
    assert answer(scoped.address, "/inferd.v1.InferenceService/Generate", "infer:the-infer-key") == "BAD_TOKEN"


def test_every_rpc_is_classified_and_nothing_else_is() -> None:
    files = (inference_pb2, model_pb2, admin_pb2, health_pb2, reflection_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    contract = {service.full_name: {method.name for method in service.methods} for service in services}
    contract["grpc.reflection.v1.ServerReflection"] = contract["grpc.reflection.v1alpha.ServerReflection"]
    classified = {service: set(methods) for service, methods in RPC_SCOPES.items()}
    classified["grpc.health.v1.Health"] &= contract["grpc.health.v1.Health"]  # List is newer than some libraries
    assert classified == contract
    public = {service for service, methods in RPC_SCOPES.items() for scopes in methods.values() if not scopes}
    assert public == {"grpc.health.v1.Health"}
