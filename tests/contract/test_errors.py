"""The one error table, held against both entrances: what a failure is over gRPC decides what it is over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from inferd_gateway.errors import INTERNAL, TABLE, from_rpc
from inferd_gateway.mux import item_failure

from inferd import errors
from inferd.errors import DOMAIN, InferdError
from inferd.front.admission import Admission
from inferd.server.status import item_error, status_code, status_trailers
from inferd.testing.error_contract import CONTRACT
from inferd.testing.requests import make_request

RETRY_S = 7.2


def classes(root: type[InferdError] = InferdError) -> Iterator[type[InferdError]]:
    yield root
    for child in root.__subclasses__():
        yield from classes(child)


ALL = sorted({cls.reason: cls for cls in reversed(list(classes()))}.items())


def made(cls: type[InferdError]) -> InferdError:
    retry = RETRY_S if CONTRACT[cls.reason][4] else None
    return cls("stop.max_tokens is wrong", field="stop.max_tokens", retry_after_s=retry, metadata={"model": "m"})


def raised(error: InferdError) -> grpc.aio.AioRpcError:
    """What a client of the daemon gets, on a call of its own."""
    trailers = grpc.aio.Metadata(*status_trailers(error, "r-1"))
    return grpc.aio.AioRpcError(status_code(error), grpc.aio.Metadata(), trailers, error.message, None)


def details(failure: grpc.aio.AioRpcError) -> dict[str, Any]:
    metadata: Any = failure.trailing_metadata()
    status = Status.FromString(dict(metadata)["grpc-status-details-bin"])
    return {packed.TypeName().rpartition(".")[2]: packed for packed in status.details}


def test_every_error_of_the_daemon_is_in_the_contract() -> None:
    assert {reason for reason, _ in ALL} == set(CONTRACT)


@pytest.mark.parametrize(("reason", "cls"), ALL, ids=[reason for reason, _ in ALL])
def test_over_grpc(reason: str, cls: type[InferdError]) -> None:
    code, *_, retry = CONTRACT[reason]
    failure = raised(made(cls))
    assert failure.code().name == code
    found = details(failure)
    info = error_details_pb2.ErrorInfo()
    assert found["ErrorInfo"].Unpack(info)
    assert (info.reason, info.domain) == (reason, DOMAIN)
    assert ("BadRequest" in found) == (code == "INVALID_ARGUMENT")
    assert ("ResourceInfo" in found) == (code == "NOT_FOUND")
    assert ("RetryInfo" in found) is retry
    metadata: Any = failure.trailing_metadata()
    assert dict(metadata).get("grpc-retry-pushback-ms") == ("7200" if retry else None)
    assert "RequestInfo" in found


@pytest.mark.parametrize("multiplexed", [False, True])
@pytest.mark.parametrize(("reason", "cls"), ALL, ids=[reason for reason, _ in ALL])
def test_over_http(reason: str, cls: type[InferdError], multiplexed: bool) -> None:
    code, status, error_type, openai_code, retry = CONTRACT[reason]
    error = made(cls)
    failure = item_failure(item_error(error)) if multiplexed else raised(error)
    assert failure.code().name == code
    answer = from_rpc(failure, {"stop.max_tokens": "max_tokens"})
    body = answer.body["error"]
    assert (answer.status, body["type"], body["code"]) == (status, error_type, openai_code)
    assert answer.headers.get("retry-after") == ("8" if retry else None)
    if status in (408, 409, 429) or status >= 500:
        assert answer.headers["x-should-retry"] == ("true" if retry else "false")
    if code == "INVALID_ARGUMENT":
        assert body["param"] == "max_tokens"
        assert body["message"].startswith("max_tokens is wrong")
    if status == 404:
        assert body["param"] == "model"


def test_the_gateways_table_names_no_reason_that_the_daemon_lacks() -> None:
    ours = {(cls.code, cls.reason) for cls in classes()}
    future = {("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"), ("UNIMPLEMENTED", "UNSUPPORTED_FEATURE")}
    assert {key for key in TABLE if key[1]} <= ours | future
    assert {code for code, _ in TABLE} <= set(grpc.StatusCode.__members__)


def test_a_status_that_nobody_planned_is_opaque() -> None:
    failure = grpc.aio.AioRpcError(
        grpc.StatusCode.DATA_LOSS, grpc.aio.Metadata(), grpc.aio.Metadata(), "a secret path", None
    )
    answer = from_rpc(failure, {})
    assert (answer.status, answer.message) == (INTERNAL.status, INTERNAL.message)


def test_internal_errors_say_nothing_of_the_inside() -> None:
    answer = from_rpc(raised(errors.InternalError("/a/path is missing")), {})
    assert "/a/path" not in answer.message


def test_a_retry_time_is_the_measured_rate() -> None:
    """Nine requests a second are sure to finish: a refused caller comes back after a ninth, the next a ninth later."""
    now = 100.0
    admission = Admission(1, 0, lambda: now)
    for key in range(11):
        request = make_request(key, [key])
        admission.admit(request)
        now += 0.1
        admission.release(request)
    admission.admit(make_request(11, [11]))
    waits = []
    for key in range(12, 15):
        with pytest.raises(errors.QueueFull) as refused:
            admission.admit(make_request(key, [key]))
        waits.append(refused.value.retry_after_s)
    assert waits == pytest.approx([1 / 9, 2 / 9, 3 / 9], rel=0.01)
    headers = from_rpc(raised(refused.value), {}).headers
    assert (headers["retry-after"], headers["retry-after-ms"]) == ("1", "333")
