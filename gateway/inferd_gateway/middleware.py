"""What every HTTP exchange gets, whatever its route: ids, bounds, error bodies, CORS, metrics, one log line."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferd_gateway.api_errors import error_body, is_anthropic
from inferd_gateway.body_coding import ACCEPTED, CODINGS, BodyError, Unpacker
from inferd_gateway.context import BODY, RECORD, RequestRecord
from inferd_gateway.errors import ApiError, internal_error
from inferd_gateway.metrics import Metrics
from inferd_gateway.settings import Settings
from inferd_gateway.sse import ClientGone

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
BODY_IDLE_S = 30.0
API_VERSION = "2020-10-01"
CORS_HEADERS = "authorization, content-type, x-request-id, x-request-timeout-ms, openai-organization, openai-project"
EXPOSED_HEADERS = "x-request-id, openai-processing-ms, x-inferd-ignored-params, retry-after, retry-after-ms"
log = logging.getLogger("inferd_gateway.access")


class Exchange:
    """Wraps one request: bounds what comes in, completes what goes out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self.headers = Headers(scope=scope)
        self._path = scope["path"]
        self.record = RequestRecord(request_id(self.headers.get("x-request-id")))
        self.record.trace_id = trace_id(self.headers.get("traceparent"))
        self._receive = receive
        self._send = send
        self._settings = settings
        self._body_bytes = 0
        self._body_complete = False
        self._unpacker: Unpacker | None = None

    def check_headers(self) -> None:
        """Raises ApiError for a body that must not be read."""
        coding = self.headers.get("content-encoding", "").strip().lower()
        if coding in CODINGS:
            self._unpacker = Unpacker(coding, self._settings.max_body_bytes)
        elif coding not in ("", "identity"):
            message = f"Content-Encoding must be one of {ACCEPTED}, got {coding[:80]!r}."
            raise ApiError(415, message, headers={"accept-encoding": ACCEPTED})
        length = self.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._settings.max_body_bytes:
            raise self._too_large()

    async def receive(self) -> Message:
        if self._body_complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), BODY_IDLE_S)
        except TimeoutError:
            raise ApiError(408, "The body did not arrive.", code="timeout") from None
        if message["type"] == "http.request":
            self._body_bytes += len(message.get("body", b""))
            self._body_complete = not message.get("more_body", False)
            if self._body_bytes > self._settings.max_body_bytes:
                raise self._too_large()
            if self._unpacker is not None:
                message = {**message, "body": await self._unpacked(self._unpacker, message.get("body", b""))}
        elif message["type"] == "http.disconnect":
            raise ClientGone
        return message

    async def _unpacked(self, unpacker: Unpacker, piece: bytes) -> bytes:
        """In a thread: a small piece can unpack to much."""
        try:
            return await asyncio.to_thread(unpacker.unpack, piece, last=self._body_complete)
        except BodyError as error:
            raise ApiError(400, str(error)) from None
        except OverflowError:
            raise self._too_large() from None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.record.status = message["status"]
            self._complete(MutableHeaders(raw=message.setdefault("headers", [])))
        await self._send(message)

    async def fail(self, error: ApiError) -> None:
        body = json.dumps(error_body(error, self._path, self.record.request_id)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers.items()]
        if not self._body_complete and error.status in (400, 408, 413, 415):
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    def _complete(self, headers: MutableHeaders) -> None:
        headers["x-request-id"] = self.record.request_id
        if is_anthropic(self._path):
            headers["request-id"] = self.record.request_id
        headers["openai-version"] = API_VERSION
        headers["openai-processing-ms"] = str(int((time.monotonic() - self.record.started) * 1000))
        if self.record.ignored:
            headers["x-inferd-ignored-params"] = header_list(self.record.ignored)
        allowed = allowed_origin(self.headers.get("origin"), self._settings.allowed_origins)
        if allowed is not None:
            headers["access-control-allow-origin"] = allowed
            headers["access-control-expose-headers"] = EXPOSED_HEADERS
        if self._settings.allowed_origins and self._settings.allowed_origins != ("*",):
            headers.add_vary_header("Origin")

    def _too_large(self) -> ApiError:
        limit = self._settings.max_body_bytes
        return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")


class GatewayMiddleware:
    """The outermost ASGI layer."""

    def __init__(
        self, app: ASGIApp, settings: Settings, metrics: Metrics, methods_at: Callable[[Scope], frozenset[str]]
    ) -> None:
        """methods_at: those of the routes that a request's path has."""
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._methods_at = methods_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._settings)
        inner = {**scope, RECORD: exchange.record, BODY: send}
        # HEAD is GET; the server leaves its body out. A slash at the end names the same resource.
        inner["method"] = "GET" if scope["method"] == "HEAD" else scope["method"]
        inner["path"] = scope["path"].rstrip("/") or "/"
        try:
            await self._run(inner, exchange)
        finally:
            self._account(scope, inner, exchange.record)

    async def _run(self, scope: Scope, exchange: Exchange) -> None:
        record = exchange.record
        try:
            if scope["method"] == "OPTIONS":
                await self._preflight(exchange, allowed_methods(self._methods_at(scope)))
                return
            exchange.check_headers()
            await self._app(scope, exchange.receive, exchange.send)
        except ApiError as error:
            if record.status:
                raise
            await exchange.fail(error)
        except ClientGone:
            self._metrics.disconnects.inc()
            record.status = 499
        except Exception:
            log.error("a request failed", extra={"request_id": record.request_id})
            if not record.status:
                await exchange.fail(internal_error())
            raise  # the server logs it and closes the connection

    async def _preflight(self, exchange: Exchange, methods: str) -> None:
        """Raises ApiError where there is nothing. `methods`: as in the Allow header."""
        if not methods:
            raise ApiError(404, "Not Found")
        headers = [(b"allow", methods.encode()), (b"content-length", b"0")]
        if allowed_origin(exchange.headers.get("origin"), self._settings.allowed_origins) is not None:
            asked = exchange.headers.get("access-control-request-headers", "")
            headers += [
                (b"access-control-allow-methods", methods.encode()),
                (b"access-control-allow-headers", header_names(asked) or CORS_HEADERS.encode()),
                (b"access-control-max-age", b"600"),
            ]
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": b""})

    def _account(self, scope: Scope, inner: Scope, record: RequestRecord) -> None:
        route = getattr(inner.get("route"), "path", "unmatched")
        seconds = time.monotonic() - record.started
        self._metrics.requests.labels(route, str(record.status or 500)).inc()
        self._metrics.request_seconds.labels(route).observe(seconds)
        if record.ignored:
            self._metrics.ignored_params.labels(route).inc(len(record.ignored))
        if self._settings.access_log:
            quiet = getattr(inner.get("route"), "quiet", False) and record.status in (200, 503)
            client = scope.get("client") or ("-", 0)
            fields = {
                "status": record.status, "ms": round(seconds * 1000, 1), "request_id": record.request_id,
                "client": client[0], "model": record.model, "reply": record.reply_id,
            }  # fmt: skip
            if record.trace_id is not None:
                fields["trace_id"] = record.trace_id
            log.log(
                logging.DEBUG if quiet else logging.INFO, "%s %s", scope["method"], scope["path"][:256], extra=fields
            )


def request_id(wanted: str | None) -> str:
    return wanted if wanted and REQUEST_ID.fullmatch(wanted) else f"req_{uuid.uuid4().hex}"


def trace_id(traceparent: str | None) -> str | None:
    """Of a W3C trace context."""
    found = TRACE_PARENT.fullmatch(traceparent or "")
    return found[1] if found else None


def allowed_origin(origin: str | None, allowed: tuple[str, ...]) -> str | None:
    if origin is None or not allowed:
        return None
    return "*" if "*" in allowed else origin if origin in allowed else None


def allowed_methods(routed: frozenset[str]) -> str:
    """An Allow header: what the routes take, and what this layer adds to them. Empty where there is no route."""
    added = {"OPTIONS", *(["HEAD"] if "GET" in routed else [])} if routed else set()
    return ", ".join(sorted(routed | added))


def header_list(names: Iterable[str]) -> str:
    """Names that came from a caller, made safe for a header."""
    shown = [re.sub(r"[^A-Za-z0-9_.\[\]-]", "?", name[:64]) for name in names]
    more = f", +{len(shown) - 16}" if len(shown) > 16 else ""
    return ", ".join(shown[:16]) + more


def header_names(asked: str) -> bytes:
    return asked.encode() if re.fullmatch(r"[A-Za-z0-9_, -]{1,1024}", asked) else b""
