"""One failure of an HTTP call, and the table that turns a gRPC status into one."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import grpc
from google.rpc import error_details_pb2, status_pb2

MAX_MESSAGE = 2000
# Other fields that the daemon's message names beside the one that is wrong.
PROTO_PATH = re.compile(r"\b(?:sampling|stop|output|cache)(?:\.[a-z_]+)+\b")


class ApiError(Exception):
    """What a caller sees: an HTTP status and the OpenAI error object. `retry`: whether the SDK may try again."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        error_type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:MAX_MESSAGE]
        self.error_type = error_type
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        if status in (408, 409, 429) or status >= 500:
            self.headers.setdefault("x-should-retry", "true" if retry else "false")

    @property
    def body(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": self.error_type, "param": self.param, "code": self.code},
        }


class ContextOverflow(ApiError):
    """The context is too small for the request. Told in OpenAI's words, and in Anthropic's in `anthropic_message`:
    clients look for them to know that they must shorten a conversation."""

    def __init__(self, numbers: Mapping[str, str], param: str | None) -> None:
        """numbers: the metadata of the daemon's error."""
        prompt, context = int(numbers["prompt_tokens"]), int(numbers["max_context_tokens"])
        output = int(numbers.get("output_tokens", 1))
        what = param if param in ("messages", "input") else "prompt"
        message = f"This model's maximum context length is {context} tokens. However, "
        if prompt > context:
            message += f"your {what} resulted in {prompt} tokens. Please reduce the length of the {what}."
        else:
            message += (
                f"you requested {prompt + output} tokens ({prompt} in the {what}, {output} in the completion). Please "
                f"reduce the length of the {what} or completion."
            )
        super().__init__(400, message, code="context_length_exceeded", param=param)
        # An answer has at least one token: the longest prompt is one shorter than the context.
        self.anthropic_message = f"prompt is too long: {prompt} tokens > {context - 1} maximum"


def invalid(param: str | None, message: str) -> ApiError:
    """400 for one field."""
    return ApiError(400, message, param=param)


def model_not_found(name: str) -> ApiError:
    return ApiError(404, f"The model {name[:128]!r} does not exist.", code="model_not_found", param="model")


@dataclass(frozen=True)
class Row:
    """One row of the error table; `message` replaces the daemon's own where that must stay inside."""

    status: int
    error_type: str
    code: str | None = None
    retry: bool = False
    message: str | None = None


# (gRPC status name, ErrorInfo.reason); an empty reason is the row of that status for any other reason.
TABLE: dict[tuple[str, str], Row] = {
    ("INVALID_ARGUMENT", ""): Row(400, "invalid_request_error"),
    ("INVALID_ARGUMENT", "INVALID_CONSTRAINT"): Row(400, "invalid_request_error", "invalid_schema"),
    ("INVALID_ARGUMENT", "CONTEXT_LENGTH_EXCEEDED"): Row(400, "invalid_request_error", "context_length_exceeded"),
    ("OUT_OF_RANGE", ""): Row(400, "invalid_request_error"),
    ("NOT_FOUND", ""): Row(404, "invalid_request_error", "model_not_found"),
    ("FAILED_PRECONDITION", ""): Row(400, "invalid_request_error", "unsupported_task"),
    ("UNIMPLEMENTED", ""): Row(501, "invalid_request_error", "unsupported_feature"),
    ("UNIMPLEMENTED", "UNSUPPORTED_FEATURE"): Row(400, "invalid_request_error", "unsupported_feature"),
    ("ALREADY_EXISTS", ""): Row(409, "invalid_request_error", "duplicate_request"),
    ("RESOURCE_EXHAUSTED", ""): Row(413, "invalid_request_error", "request_too_large"),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL"): Row(429, "rate_limit_error", "server_overloaded", retry=True),
    ("RESOURCE_EXHAUSTED", "QUEUE_TIMEOUT"): Row(429, "rate_limit_error", "queue_timeout", retry=True),
    ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"): Row(429, "rate_limit_error", "rate_limit_exceeded", retry=True),
    ("DEADLINE_EXCEEDED", ""): Row(504, "timeout", "timeout", message="The request took too long."),
    ("CANCELLED", ""): Row(503, "server_error", "aborted", message="The request was cancelled by the server."),
    ("UNAVAILABLE", ""): Row(
        503, "server_error", "engine_unavailable", retry=True, message="The model is unavailable."
    ),
    ("UNAVAILABLE", "NOT_READY"): Row(503, "service_unavailable", "model_loading", retry=True),
    ("UNAVAILABLE", "DRAINING"): Row(503, "service_unavailable", "draining", retry=True),
    ("UNAVAILABLE", "ENGINE_DEAD"): Row(503, "server_error", "engine_unavailable", retry=True),
    ("ABORTED", ""): Row(503, "server_error", "aborted"),
    ("ABORTED", "CONSTRAINT_FAILED"): Row(500, "server_error", "generation_failed"),
    ("ABORTED", "NUMERIC_ERROR"): Row(500, "server_error", "generation_failed"),
    # The daemon refuses the gateway's own token: the caller can do nothing about it.
    ("UNAUTHENTICATED", ""): Row(500, "server_error", "internal_error", message="The gateway cannot use its daemon."),
    ("PERMISSION_DENIED", ""): Row(403, "permission_error", "forbidden"),
}
INTERNAL = Row(500, "server_error", "internal_error", message="The server had an error.")


def internal_error() -> ApiError:
    """Our bug: opaque."""
    return ApiError(500, INTERNAL.message or "", error_type=INTERNAL.error_type, code=INTERNAL.code)


@dataclass(frozen=True)
class StatusDetails:
    """The google.rpc details of a status."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    field_path: str | None = None
    retry_after_s: float | None = None


def details_of(error: grpc.aio.AioRpcError) -> StatusDetails:
    trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata())
    raw = next((value for key, value in trailers if key == "grpc-status-details-bin"), None)
    if not isinstance(raw, bytes):
        return StatusDetails()
    reason, metadata, path, retry = "", {}, None, None
    info, bad, delay = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in status_pb2.Status.FromString(raw).details:
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad) and bad.field_violations:
            path = bad.field_violations[0].field
        elif detail.Unpack(delay):
            retry = delay.retry_delay.seconds + delay.retry_delay.nanos / 1e9
    return StatusDetails(reason, metadata, path, retry)


def from_rpc(error: grpc.aio.AioRpcError, fields: Mapping[str, str], *, client_deadline: bool = False) -> ApiError:
    """`fields` maps proto field paths to the names the caller used; client_deadline: the caller set the time limit."""
    code, found = error.code().name, details_of(error)
    row = TABLE.get((code, found.reason)) or TABLE.get((code, ""), INTERNAL)
    status = 408 if row.status == 504 and client_deadline else row.status
    message, param = row.message or error.details() or "The request failed.", None
    if found.field_path:
        param = http_field(found.field_path, fields)
        message = PROTO_PATH.sub(lambda path: fields.get(path[0], path[0]), message.replace(found.field_path, param))
    if found.reason == "CONTEXT_LENGTH_EXCEEDED" and {"prompt_tokens", "max_context_tokens"} <= found.metadata.keys():
        return ContextOverflow(found.metadata, param)
    headers = {}
    if row.retry:
        wait = 1.0 if found.retry_after_s is None else found.retry_after_s
        headers["retry-after"] = str(max(1, math.ceil(wait)))
        headers["retry-after-ms"] = str(math.ceil(wait * 1000))  # whole seconds are coarse; OpenAI's clients read this
    if row.code == "model_not_found":
        param = "model"
    return ApiError(
        status, message, error_type=row.error_type, code=row.code, param=param, retry=row.retry, headers=headers
    )


def deadline_passed(*, client_deadline: bool) -> ApiError:
    """What a call whose deadline passed in the gateway ends with: as if it had passed in the daemon."""
    row = TABLE["DEADLINE_EXCEEDED", ""]
    status = 408 if client_deadline else row.status
    return ApiError(status, row.message or "", error_type=row.error_type, code=row.code)


def http_field(path: str, fields: Mapping[str, str]) -> str:
    """`stop.stop_strings[2]` -> `stop`: the longest known prefix of the path, else its last name. A place in a list
    may have a name of its own."""
    if path in fields:
        return fields[path]
    name = re.sub(r"\[\d+\]", "", path)
    while name:
        if name in fields:
            return fields[name]
        name = name.rpartition(".")[0]
    return re.sub(r"\[\d+\]$", "", path).rpartition(".")[2]
