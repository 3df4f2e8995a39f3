"""uvicorn's httptools protocol with bounds on what precedes a body."""

from __future__ import annotations

import asyncio
import json
import ssl
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inferd_gateway.errors import ApiError
from inferd_gateway.settings import Settings

MAX_URL = 8 * 1024
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 * 1024
HEADER_TIMEOUT_S = 10.0
PHRASES = {400: b"Bad Request", 408: b"Request Timeout", 414: b"URI Too Long", 431: b"Request Header Fields Too Large"}


class BoundedHttpProtocol(HttpToolsProtocol):
    """Cuts off long URLs, floods of headers and clients that never finish their headers."""

    _refusal: ApiError | None = None
    _header_bytes = 0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        super().connection_made(transport)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._header_bytes = 0
        self._await_headers()

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
        self._headers_arrived()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for whatever the parser, or _refuse, does not take."""
        error, self._refusal = self._refusal or ApiError(400, msg), None
        body = json.dumps(error.body).encode()
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        if not self.transport.is_closing():
            self.transport.write(head % (error.status, PHRASES[error.status], len(body)) + body)
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        self._refusal = error
        raise error  # the parser stops and reports to send_400_response

    def _await_headers(self) -> None:
        self._headers_arrived()
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._headers_late)

    def _headers_arrived(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _headers_late(self) -> None:
        self._refusal = ApiError(408, "The request's headers did not arrive.")
        self.send_400_response("")


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
