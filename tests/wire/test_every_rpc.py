"""Every method of the contract is built: called with an empty request, each answers, or says what it lacks."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.v1 import admin_pb2, inference_pb2, model_pb2

FILES = (inference_pb2, model_pb2, admin_pb2)
METHODS = [
    method for file in FILES for service in file.DESCRIPTOR.services_by_name.values() for method in service.methods
]
ANSWERS = {"OK", "INVALID_ARGUMENT", "FAILED_PRECONDITION"}


@pytest.fixture(scope="module")
def both_listeners() -> Iterator[dict[str, grpc.Channel]]:
    """Service -> a channel to where it listens."""
    with DaemonProcess(fake_config(server={"admin_listen": "127.0.0.1:0"})) as daemon:
        daemon.wait_ready()
        assert daemon.admin is not None
        with grpc.insecure_channel(daemon.address) as data, grpc.insecure_channel(daemon.admin) as admin:
            yield {"InferenceService": data, "ModelService": data, "AdminService": admin}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_it_is_built(both_listeners: dict[str, grpc.Channel], method: MethodDescriptor) -> None:
    channel = both_listeners[method.containing_service.name]
    path = f"/{method.containing_service.full_name}/{method.name}"
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, shape)(path)
    try:
        answer = call(iter(()) if method.client_streaming else b"", timeout=10)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
        code = "OK"
    except grpc.RpcError as error:
        code = error.code().name
    assert code in ANSWERS
