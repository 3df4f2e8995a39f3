"""What one gateway process holds, and what it knows about the request at hand."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, cast

from fastapi import Depends, Request
from pydantic import BaseModel
from starlette.types import Scope

from inferd_gateway.auth import KeyRing, credential
from inferd_gateway.backend import CallContext
from inferd_gateway.errors import invalid
from inferd_gateway.metrics import Metrics
from inferd_gateway.routing import affinity_key
from inferd_gateway.schemas.common import ignored_fields
from inferd_gateway.settings import Settings
from inferd_gateway.templates.renderer import Renderer

if TYPE_CHECKING:
    from inferd_gateway.directory import ModelDirectory

RECORD = "inferd.record"
BODY = "inferd.body"  # sends the body of a response that has begun, past the layers that look at its start alone
TENANT = "x-inferd-tenant"  # metadata: whom a call is for
MAX_TIMEOUT_MS = 24 * 3600 * 1000
MAX_TRACE_HEADER = 512


@dataclass(frozen=True)
class Gateway:
    """The long-lived parts, made in the lifespan."""

    settings: Settings
    keys: KeyRing
    metrics: Metrics
    renderer: Renderer
    directory: ModelDirectory


@dataclass
class RequestRecord:
    """Written along the way by the route, read by the middleware for headers, metrics and the log line."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    ignored: Sequence[str] = ()
    model: str | None = None
    reply_id: str | None = None  # the request id of the daemon's log
    status: int = 0
    trace_id: str | None = None


def record_of(scope: Scope) -> RequestRecord:
    return cast(RequestRecord, scope[RECORD])


@dataclass(frozen=True)
class Call:
    """One protected HTTP call: the request, its record, and the gateway."""

    request: Request
    gateway: Gateway
    record: RequestRecord

    def accept(self, body: BaseModel) -> None:
        """Report the fields that nobody knows, or refuse them. Raises a 400 ApiError."""
        unknown = sorted(ignored_fields(body))
        if unknown and self.gateway.settings.strict_params:
            raise invalid(unknown[0][:128], f"Unknown field {unknown[0][:128]}.")
        self.record.ignored = unknown

    def affinity(self, body: BaseModel, prompt: object) -> bytes | None:
        """For routing: requests with the same key had better meet the same daemon."""
        return affinity_key(self.request.headers, vars(body), prompt)

    def rpc_context(self) -> CallContext:
        """Deadline and metadata for this call's RPCs."""
        headers = self.request.headers
        limit = headers.get("x-request-timeout-ms")
        seconds = self.gateway.settings.request_timeout if limit is None else timeout_seconds(limit)
        return CallContext(
            self.record.request_id,
            self.record.started + seconds,
            client_deadline=limit is not None,
            metadata=(*trace_headers(headers), *self._tenant()),
        )

    def _tenant(self) -> tuple[tuple[str, str], ...]:
        """The daemon shares itself between those whom it is told; of the gateway's own key it knows but one."""
        holder = self.gateway.keys.holder(credential(self.request))
        return () if holder is None else ((TENANT, holder),)


def timeout_seconds(milliseconds: str) -> float:
    if not (milliseconds.isascii() and milliseconds.isdigit() and 0 < int(milliseconds) <= MAX_TIMEOUT_MS):
        raise invalid("x-request-timeout-ms", f"x-request-timeout-ms must be from 1 to {MAX_TIMEOUT_MS}.")
    return int(milliseconds) / 1000


def trace_headers(headers: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """W3C trace context is passed through as it is, when it is sane."""
    given = ((name, headers.get(name)) for name in ("traceparent", "tracestate"))
    return tuple(
        (name, value)
        for name, value in given
        if value and len(value) <= MAX_TRACE_HEADER and value.isascii() and value.isprintable()
    )


async def get_call(request: Request) -> Call:
    """A coroutine, because FastAPI runs plain functions in a thread."""
    return Call(request, request.app.state.gateway, record_of(request.scope))


CurrentCall = Annotated[Call, Depends(get_call)]


def new_id(prefix: str, wanted: str | None = None) -> str:
    return f"{prefix}-{wanted or uuid.uuid4().hex}"
