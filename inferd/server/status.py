"""InferdError -> gRPC status with google.rpc details. Only this module knows the details of the error table."""

from __future__ import annotations

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RequestInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from inferd.errors import DOMAIN, InferdError, ModelNotFound
from inferd.v1 import common_pb2

MAX_MESSAGE_CHARS = 1024
Metadata = tuple[tuple[str, str | bytes], ...]


def status_code(error: InferdError) -> grpc.StatusCode:
    return grpc.StatusCode[error.code]


def status_details(error: InferdError, request_id: str) -> list[Message]:
    """The google.rpc details of one failure: always ErrorInfo, the others where they say something."""
    details: list[Message] = [ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)]
    if error.code == "INVALID_ARGUMENT" and error.field:
        violation = BadRequest.FieldViolation(
            field=error.field, description=shorten(error.message), reason=error.reason
        )
        details.append(BadRequest(field_violations=[violation]))
    if isinstance(error, ModelNotFound):
        details.append(ResourceInfo(resource_type="model", resource_name=error.metadata.get("model", "")))
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(retry_ms(error.retry_after_s))
        details.append(RetryInfo(retry_delay=delay))
    if request_id:
        details.append(RequestInfo(request_id=request_id))
    return details


def status_trailers(error: InferdError, request_id: str) -> Metadata:
    """Trailing metadata for one failure: the details, and the retry time that gRPC clients obey by themselves."""
    packed = []
    for detail in status_details(error, request_id):
        any_ = Any()
        any_.Pack(detail)
        packed.append(any_)
    status = Status(code=status_code(error).value[0], message=shorten(error.message), details=packed)
    trailers: Metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    if error.retry_after_s is not None:
        trailers = (*trailers, ("grpc-retry-pushback-ms", str(retry_ms(error.retry_after_s))))
    return trailers


def item_error(error: InferdError) -> common_pb2.ItemError:
    """One failure among many on a multiplexed or bulk stream."""
    return common_pb2.ItemError(
        code=status_code(error).value[0],
        reason=error.reason,
        message=shorten(error.message),
        metadata=error.metadata,
        retry_after_ms=retry_ms(error.retry_after_s) if error.retry_after_s is not None else 0,
        field=error.field or "",
    )


def retry_ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE_CHARS else text[: MAX_MESSAGE_CHARS - 1] + "…"
