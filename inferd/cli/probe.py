"""Whether a daemon and a gateway answer yet: probes that block briefly, and waiting for one of them."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from typing import TypeVar

import grpc

from inferd.cli.health import check
from inferd.v1 import model_pb2, model_pb2_grpc

INTERVAL_S = 0.1
TIMEOUT_S = 2.0
SILENT = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
READY_SERVICE = "inferd.v1.InferenceService"

Answer = TypeVar("Answer")


async def until(probe: Callable[[], Answer | None]) -> Answer:
    """The first true answer of `probe`, run in a thread. Waits for ever: the caller watches the processes."""
    while not (answer := await asyncio.to_thread(probe)):
        await asyncio.sleep(INTERVAL_S)
    return answer


def grpc_answers(address: str) -> bool:
    """Whether something speaks gRPC there, ready or not."""
    return check(address, "", TIMEOUT_S) not in SILENT


def grpc_serves(address: str) -> bool:
    return check(address, READY_SERVICE, TIMEOUT_S) == "SERVING"


def first_model(url: str, api_key: str | None) -> str | None:
    """The first model a gateway lists; None while it lists none."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    request = urllib.request.Request(f"{url}/v1/models", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            models = json.load(response)["data"]
    except (OSError, ValueError, KeyError):
        return None
    return str(models[0]["id"]) if models else None


def model_info(address: str, api_key: str | None) -> model_pb2.GetModelInfoResponse | None:
    """What a daemon says of its model; None while it does not answer."""
    metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
    with grpc.insecure_channel(address) as channel:
        stub = model_pb2_grpc.ModelServiceStub(channel)
        try:
            found: model_pb2.GetModelInfoResponse = stub.GetModelInfo(
                model_pb2.GetModelInfoRequest(), timeout=TIMEOUT_S, metadata=metadata
            )
        except grpc.RpcError:
            return None
    return found
