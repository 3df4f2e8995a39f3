"""One RPC as its handler sees it, and the frame around every handler: ids, errors to status, access log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import grpc
from google.protobuf.message import Message

from inferd.errors import InferdError, InternalError, InvalidParameter, SlowConsumer
from inferd.request import Tenant
from inferd.server.status import Metadata, shorten, status_code, status_trailers

logger = logging.getLogger("inferd.server")
access = logging.getLogger("inferd.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]+")
REQUEST_ID_KEY = "x-request-id"
TRACE_PARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")  # W3C trace context
TENANT_KEY = "x-inferd-tenant"
MAX_TENANT_CHARS = 128
QUIET_SERVICE = "/inferd.v1.ModelService/"  # polled by every gateway
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")


class CallBase:
    """What a handler may do whatever carries its call: read metadata and deadline, write messages, leave trailers."""

    def __init__(self, method: str) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.method = method
        self.started = time.monotonic()
        self.request_id = ""
        self.api_key = ""  # a digest of the key that let the call in; empty where there are no keys
        self.trailers: Metadata = ()
        self.log_fields: dict[str, object] = {}
        self.background = False  # a drain does not wait for it

    def metadata_values(self, key: str) -> list[str]:
        raise NotImplementedError

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None without one."""
        raise NotImplementedError

    async def write(self, message: Message) -> None:
        """Send one message of a stream. Raises SlowConsumer when the reader takes nothing for too long."""
        raise NotImplementedError

    def metadata(self, key: str) -> str | None:
        """The one value of a metadata key. Raises InvalidParameter when there are several."""
        values = self.metadata_values(key)
        if len(values) > 1:
            raise InvalidParameter(f"the metadata key {key} was given {len(values)} times, once at most", field=key)
        return values[0] if values else None

    def choose_request_id(self, given: str, max_chars: int) -> None:
        """The request's own id, else the metadata's, else a new one. Raises InvalidParameter for a bad one."""
        self.request_id = self.request_id or make_request_id()  # an error about the id needs one too
        for field, value in (("request_id", given), (REQUEST_ID_KEY, self.metadata(REQUEST_ID_KEY) or "")):
            if not value:
                continue
            if len(value) > max_chars or not REQUEST_ID.fullmatch(value):
                raise InvalidParameter(f"{field} must be 1 to {max_chars} characters of [A-Za-z0-9._:-]", field=field)
            self.request_id = value
            return

    def tenant(self) -> Tenant:
        """Who asks: the key, and whom its holder names. Raises InvalidParameter for a bad name."""
        name = self.metadata(TENANT_KEY) or ""
        if len(name) > MAX_TENANT_CHARS:
            message = f"{TENANT_KEY} has {len(name)} characters, at most {MAX_TENANT_CHARS} are allowed"
            raise InvalidParameter(message, field=TENANT_KEY)
        return Tenant(self.api_key, name)

    def deadline(self, cap_s: float) -> float:
        """The call's deadline on the monotonic clock, at most cap_s from now."""
        left = self.time_remaining()
        return time.monotonic() + (cap_s if left is None else min(max(left, 0.0), cap_s))

    def log_end(self, code: str) -> None:
        """One line about the call. What gateways poll is not worth a line at the usual level."""
        quiet = code == "OK" and self.method.startswith(QUIET_SERVICE)
        trace = [found[1] for value in self.metadata_values("traceparent") if (found := TRACE_PARENT.fullmatch(value))]
        fields = {"request_id": self.request_id, "method": self.method, "code": code, **self.log_fields}
        if trace:
            fields["trace_id"] = trace[0]
        fields["duration_ms"] = round((time.monotonic() - self.started) * 1e3, 1)
        access.log(logging.DEBUG if quiet else logging.INFO, "rpc", extra=fields)


class Call(CallBase):
    """One RPC. `closing` is set when the server ends and waits for background calls to end by themselves."""

    def __init__(self, context: Context, method: str, closing: asyncio.Event) -> None:
        super().__init__(method)
        self.context = context
        self.closing = closing
        self._headers_sent = False
        self._write_started: float | None = None
        self._stalled = False

    def metadata_values(self, key: str) -> list[str]:
        return [str(value) for name, value in self.context.invocation_metadata() or () if name == key]

    def time_remaining(self) -> float | None:
        left: float | None = self.context.time_remaining()
        return left

    async def send_headers(self) -> None:
        if not self._headers_sent:
            self._headers_sent = True
            await self.context.send_initial_metadata(((REQUEST_ID_KEY, self.request_id),))

    async def write(self, message: Message) -> None:
        """Headers go out with the first message and not before: until then a client may retry by itself."""
        await self.send_headers()
        self._write_started = time.monotonic()
        try:
            await self.context.write(message)
        except asyncio.CancelledError:
            if self._stalled:
                self.task.uncancel()  # the handler goes on, to say why
                raise SlowConsumer("the client read nothing while output was waiting, for too long") from None
            raise
        finally:
            self._write_started = None

    def cut_stalled_write(self, limit_s: float) -> None:
        """End a write that has been waiting for the reader longer than limit_s."""
        started = self._write_started
        if started is not None and not self._stalled and time.monotonic() - started > limit_s:
            self._stalled = True
            self.task.cancel()


Handler: TypeAlias = Callable[[Any, Call], Awaitable[Message | None]]


class CallRunner:
    """Runs handlers. The server's last line: whatever a handler raises ends as one status and one log line."""

    def __init__(
        self, stall_timeout_s: float, max_request_id_chars: int, identify: Callable[[str], str] | None = None
    ) -> None:
        """identify: what names the holder of a key, where calls have keys that were checked."""
        self.max_request_id_chars = max_request_id_chars
        self._identify = identify
        self.closing = asyncio.Event()
        self._stall_timeout_s = stall_timeout_s
        self._calls: set[CallBase] = set()

    @property
    def active(self) -> set[asyncio.Task[Any]]:
        """The tasks of running handlers that a drain waits for."""
        return {call.task for call in self._calls if not call.background}

    @property
    def tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks of all running handlers."""
        return {call.task for call in self._calls}

    async def watch_readers(self) -> None:
        """Runs beside the server. One look at all calls now and then costs less than a timer per message."""
        while True:
            await asyncio.sleep(self._stall_timeout_s / 8)
            for call in list(self._calls):
                if isinstance(call, Call):
                    call.cut_stalled_write(self._stall_timeout_s)

    async def run(self, method: str, handler: Handler, request: Any, context: Context) -> Message | None:
        """`request` is a message, an iterator of them, or None: the bytes were no such message."""
        call = Call(context, method, self.closing)
        if self._identify is not None:
            call.api_key = self._identify((call.metadata_values("authorization") or [""])[0])

        async def work() -> Message | None:
            call.choose_request_id(getattr(request, "request_id", ""), self.max_request_id_chars)
            response = await handler(request, call)
            if response is not None:
                await call.send_headers()
            context.set_trailing_metadata(call.trailers)
            return response

        result = await self.settle(call, work())
        if isinstance(result, InferdError):
            trailers = (*status_trailers(result, call.request_id), (REQUEST_ID_KEY, call.request_id), *call.trailers)
            await context.abort(status_code(result), shorten(result.message), trailers)
        assert not isinstance(result, InferdError)
        return result

    async def settle(self, call: CallBase, work: Awaitable[T]) -> T | InferdError:
        """What `work` returns, or the error it ended with; logged either way."""
        self._calls.add(call)
        code = "CANCELLED"
        try:
            result = await work
            code = "OK"
            return result
        except InferdError as error:
            code = error.code
            return error
        except asyncio.CancelledError:
            code = "DEADLINE_EXCEEDED" if call.time_remaining() == 0 else code
            raise
        except grpc.aio.InternalError:  # a write that was pending when the client went away
            raise asyncio.CancelledError from None
        except Exception:  # the boundary: a bug of ours must end as INTERNAL, and be seen
            code = "INTERNAL"
            logger.exception("unexpected error in %s", call.method, extra={"request_id": call.request_id})
            return InternalError("internal error")
        finally:
            self._calls.discard(call)
            call.log_end(code)


def make_request_id() -> str:
    """48 bits of time, 74 of chance, laid out as UUID version 7 (RFC 9562): sorts by time in logs."""
    raw = bytearray((time.time_ns() // 1_000_000).to_bytes(6, "big") + os.urandom(10))
    raw[6] = raw[6] & 0x0F | 0x70
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
