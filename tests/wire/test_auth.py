"""Keys: everything but health needs one, and no way around it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.testing.wire import collect, decode_failure, fails, make_generate
from inferd.v1 import model_pb2
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
