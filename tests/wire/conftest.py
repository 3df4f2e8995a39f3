"""One daemon process over the fake core, for the tests that only talk to it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from inferd.testing.fake_daemon import DaemonProcess, fake_config
from inferd.v1 import inference_pb2_grpc, model_pb2_grpc


@pytest.fixture(scope="session")
def daemon() -> Iterator[DaemonProcess]:
    config = fake_config(scheduler={"max_num_seqs": 64, "max_waiting": 64})
    with DaemonProcess(config, {"behaviour": {"step_s": 0.001}}) as process:
        yield process.wait_ready()


@pytest.fixture(scope="session")
def channel(daemon: DaemonProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(daemon.address) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(channel: grpc.Channel) -> inference_pb2_grpc.InferenceServiceStub:
    return inference_pb2_grpc.InferenceServiceStub(channel)


@pytest.fixture(scope="session")
def models(channel: grpc.Channel) -> model_pb2_grpc.ModelServiceStub:
    return model_pb2_grpc.ModelServiceStub(channel)
