"""uvicorn's httptools protocol with bounds on what precedes a body."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import httptools
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from inferd_gateway.errors import ApiError
from inferd_gateway.settings import Settings

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_URL = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
HEADER_TIMEOUT_S = 10.0
Headers = Sequence[tuple[bytes, bytes]]
UPGRADE_HEADERS = (b"upgrade", b"http2-settings")
PHRASES = {
    400: b"Bad Request",
    408: b"Request Timeout",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
}


class HeaderTimer:
    """Calls `late` unless it is stopped in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, late: Callable[[], None]) -> None:
        self._loop = loop
        self._late = late
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From the beginning, if it runs already."""
        self.stop()
        self._handle = self._loop.call_later(HEADER_TIMEOUT_S, self._late)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class BoundedHttpProtocol(HttpToolsProtocol):
    """Cuts off long URLs, floods of headers and clients that never finish their headers. Ignores upgrades, and answers
    HTTP/1.0 as that version wants it."""

    _refusal: ApiError | None = None  # what the parser is about to report
    _unreadable: ApiError | None = None  # what ends the connection, once all before it has been answered
    _running: RequestResponseCycle | None = None  # the request that was begun last
    _header_bytes = 0
    _header_timer: HeaderTimer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._header_timer = HeaderTimer(self.loop, self._headers_late)
        self._header_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_timer.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unreadable is not None:
            return
        self._unset_keepalive_if_required()
        try:
            while data:
                data = self._parse(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _parse(self, data: bytes) -> bytes:
        """What is left to parse. The parser takes what follows the headers of a request with `Upgrade` for another
        protocol. None is spoken here, and an upgrade that is not wanted is to be ignored (RFC 9110, section 7.8): the
        same request is parsed again without it."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = head_without_upgrade(self.parser, self.url, self.headers)
            self.parser = httptools.HttpRequestParser(self)
            with contextlib.suppress(AttributeError):  # as the server sets up the first one, where it can
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            return head + data[upgrade.args[0] :]
        return b""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._header_timer.start()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL:
            self._refuse(ApiError(414, f"The URL is longer than {MAX_URL} bytes."))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            limits = f"{MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes"
            self._refuse(ApiError(431, f"The request has more than {limits} of headers."))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._header_timer.stop()
        if self.parser.get_method() == b"CONNECT":
            self._refuse(ApiError(501, "CONNECT is not supported."))
        if self.parser.should_upgrade():
            return  # _parse comes back with the request as it is without that
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # that version has no interim answers
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, until_close(app, cycle) if cycle.scope["http_version"] == "1.0" else app)

    def on_response_complete(self) -> None:
        if self._unreadable is not None and self.pipeline and self.pipeline[0][0].more_body:
            self.pipeline.popleft()  # the newest: its body is what cannot be read
        super().on_response_complete()
        if self._unreadable is not None:
            self._end(self._unreadable)

    def send_400_response(self, msg: str) -> None:
        """Called for whatever the parser, or _refuse, does not take."""
        self._unreadable, self._refusal = self._refusal or ApiError(400, msg), None
        self._end(self._unreadable)

    def _end(self, error: ApiError) -> None:
        """Answer with an error and close: not before every request that came whole has been answered."""
        running = self._running
        if running is not None and not running.response_complete:
            if not running.more_body:
                return  # on_response_complete calls again
            running.disconnected = True  # its own body is what cannot be read
            if running.response_started:
                self.transport.close()
        if not self.transport.is_closing():
            body = json.dumps(error.body).encode()
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head % (error.status, PHRASES[error.status], len(body)) + body)
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise error  # the parser stops and reports to send_400_response

    def _headers_late(self) -> None:
        if self._running is not None and not self._running.response_complete:
            self._header_timer.start()  # of a pipelined request: its sender is still busy reading
            return
        self._refusal = ApiError(408, "The request's headers did not arrive.")
        self.send_400_response("")


def head_without_upgrade(parser: httptools.HttpRequestParser, url: bytes, headers: Headers) -> bytes:
    """The head of the request that the parser has read, but for what offers an upgrade."""
    lines = [b"%s %s HTTP/%s" % (parser.get_method(), url, parser.get_http_version().encode())]
    for name, value in headers:
        if name == b"connection":
            kept = [word for word in value.split(b",") if word.strip().lower() not in UPGRADE_HEADERS]
            value = b",".join(kept)
        if name not in UPGRADE_HEADERS:
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])


def until_close(app: ASGI3Application, cycle: RequestResponseCycle) -> ASGI3Application:
    """For HTTP/1.0, which has no chunks: a body whose length is unknown ends where the connection does (RFC 9112,
    section 6.3)."""

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        unbounded = False

        async def send_plain(message: Message) -> None:
            nonlocal unbounded
            if message["type"] == "http.response.start":
                unbounded = all(name.lower() != b"content-length" for name, _ in message.get("headers", ()))
                cycle.chunked_encoding = False if unbounded else None
            elif unbounded:
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plain)  # type: ignore[arg-type]  # starlette's names for the same protocol

    return run  # type: ignore[return-value]  # as above


def server_options() -> dict[str, Any]:
    """What uvicorn.Config is given besides the address."""
    return {
        "http": BoundedHttpProtocol,
        "loop": "uvloop",
        "ws": "none",
        "timeout_keep_alive": 75,
        "server_header": False,
        "access_log": False,
        "log_config": None,
    }


def tls_options(settings: Settings) -> dict[str, Any]:
    """What uvicorn.Config is given for HTTPS, and for callers' certificates."""
    if settings.ssl_certfile is None:
        return {}
    required = ssl.CERT_NONE if settings.ssl_ca_certs is None else ssl.CERT_REQUIRED
    return {
        "ssl_certfile": settings.ssl_certfile,
        "ssl_keyfile": settings.ssl_keyfile,
        "ssl_ca_certs": settings.ssl_ca_certs,
        "ssl_cert_reqs": int(required),
    }
