"""grpc.health.v1 with a Watch that watches and ends with the server.

"" is the process: SERVING until it drains. inferd.v1.InferenceService is readiness: a model is loaded, the engine
lives, nothing drains.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2

from inferd.server.call import Context

PROCESS = ""
READINESS = "inferd.v1.InferenceService"
SERVICE_NAME = "grpc.health.v1.Health"

Response: TypeAlias = health_pb2.HealthCheckResponse
SERVING, NOT_SERVING, SERVICE_UNKNOWN = Response.SERVING, Response.NOT_SERVING, Response.SERVICE_UNKNOWN


class HealthService:
    """Statuses by service name. Every watcher has an event of its own, so that a stuck one holds nobody up."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {PROCESS: SERVING, READINESS: NOT_SERVING}
        self._watchers: set[asyncio.Event] = set()
        self._closed = False

    def set(self, service: str, *, serving: bool) -> None:
        self._statuses[service] = SERVING if serving else NOT_SERVING
        self._wake()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    def status(self, service: str) -> int:
        status: int = self._statuses.get(service, SERVICE_UNKNOWN)
        return status

    async def check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Response:
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return Response(status=status)

    async def watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            last = None
            while True:
                changed.clear()
                status = self.status(request.service)
                if status != last:
                    await context.write(Response(status=status))
                    last = status
                if self._closed:
                    return
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        parse = health_pb2.HealthCheckRequest.FromString
        serialize = Response.SerializeToString
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                "Check": grpc.unary_unary_rpc_method_handler(self.check, parse, serialize),
                "Watch": grpc.unary_stream_rpc_method_handler(self.watch, parse, serialize),
            },
        )

    def _wake(self) -> None:
        for changed in self._watchers:
            changed.set()
