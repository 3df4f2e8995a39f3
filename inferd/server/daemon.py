"""The listening half of the daemon: the gRPC server, health and metrics around one front, and how they end."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import uuid
from collections.abc import Awaitable
from contextlib import suppress

import grpc

from inferd.config import InferdConfig, ServerConfig
from inferd.errors import Draining, StartupError
from inferd.front.engine import FrontEngine
from inferd.front.exporter import Exporter, FrontCollector
from inferd.server.auth import KeyCheck
from inferd.server.call import CallRunner
from inferd.server.handlers import service_handler
from inferd.server.health import PROCESS, READINESS, SERVICE_NAME, HealthService
from inferd.server.inference_service import InferenceService
from inferd.server.inputs import Serving
from inferd.server.model_service import ModelService
from inferd.server.pooling_service import PoolingService
from inferd.server.reflection import reflection_handlers
from inferd.server.served_model import ServedModel
from inferd.server.text_pool import TextPool
from inferd.v1 import admin_pb2, inference_pb2, model_pb2

logger = logging.getLogger("inferd.server")

STOP_GRACE_S = 1.0
MAX_PENDING_CALLS = 20_000  # the library answers CANCELLED beyond it, which clients do not retry


class Daemon:
    """start() listens, drain() ends politely; the front and its core belong to the caller."""

    def __init__(self, config: InferdConfig, model: ServedModel, front: FrontEngine) -> None:
        self._config = config
        self._front = front
        self._pool = TextPool()
        self._exporter: Exporter | None = None
        self._runner = CallRunner(config.server.stall_timeout_s, config.server.limits.max_request_id_chars)
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self.health = HealthService()
        self.model = model
        self.port = 0
        keys = config.server.api_keys
        self._server = grpc.aio.server(
            interceptors=[KeyCheck(keys)] if keys else [], options=server_options(config.server)
        )
        self._add_services()

    async def start(self) -> None:
        """Listen. Raises StartupError when a port cannot be had."""
        server = self._config.server
        self.port = bind(self._server, server.host, server.port)
        if server.metrics_port is not None:
            collector = FrontCollector(self._front.metrics, self._config.engine, self.model.name)
            self._exporter = Exporter(collector, server.host, server.metrics_port)
        await self._server.start()
        self._watch = asyncio.create_task(self._runner.watch_readers())
        self._front.on_change(self._update_health)
        logger.info(
            "listening on %s:%d", server.host, self.port, extra={"model": self.model.name, "metrics": self.metrics_port}
        )

    @property
    def metrics_port(self) -> int | None:
        return self._exporter.port if self._exporter else None

    async def drain(self, hurry: asyncio.Event, settle_s: float) -> None:
        """End in order: not ready, but serving, for settle_s, while balancers take note; refuse; finish what runs, for
        drain_timeout_s; fail the rest. `hurry` cuts every wait short."""
        self._draining = True
        self._update_health()
        logger.info("draining", extra={"live": self._front.admission.live})
        await within(asyncio.sleep(settle_s), hurry)
        self._front.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.server.drain_timeout_s):
                await within(self._idle(), hurry)
        if live := self._front.admission.live:
            logger.warning("ending %d choices that did not finish in time", live)
        self._front.fail_all(Draining("the server shut down before the generation ended", retry_after_s=1.0))
        await self.close()

    async def close(self) -> None:
        """Stop listening and wait for the handlers; what still runs is cancelled."""
        self.health.close()
        await self._server.stop(STOP_GRACE_S)
        if self._runner.active:
            await asyncio.wait(self._runner.active, timeout=STOP_GRACE_S)
        if self._watch is not None:
            self._watch.cancel()
        self._pool.close()
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)

    async def _idle(self) -> None:
        while self._runner.active:
            await asyncio.wait(self._runner.active)

    def _update_health(self) -> None:
        self.health.set(PROCESS, serving=not self._draining)
        self.health.set(READINESS, serving=self._front.serving and not self._draining)

    def _add_services(self) -> None:
        inference = InferenceService(self._config, self.model, self._front, self._pool)
        serving = Serving(self._config, self.model, self._front, self._pool)
        pooling = PoolingService(serving, inference.tokenize)
        models = ModelService(self._config, self.model, lambda: self._front.ready, str(uuid.uuid4()))
        services = {
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]: {
                **inference.handlers(),
                **pooling.handlers(),
            },
            model_pb2.DESCRIPTOR.services_by_name["ModelService"]: models.handlers(),
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"]: {},
        }
        bulk = pooling.bulk_handlers()
        handlers = [
            service_handler(service, built, self._runner, bulk if service.name == "InferenceService" else {})
            for service, built in services.items()
        ]
        handlers.append(self.health.handler())
        if self._config.server.reflection:
            built = [service.full_name for service, handlers in services.items() if handlers]
            handlers += reflection_handlers([*built, SERVICE_NAME])
        self._server.add_generic_rpc_handlers(tuple(handlers))


def server_options(config: ServerConfig) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # a second daemon on the port is a mistake, not a load balancer
        ("grpc.max_receive_message_length", config.limits.max_message_bytes),
        ("grpc.server.max_pending_requests", MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_PENDING_CALLS),
        # A generation may send nothing for minutes; the client's pings then are no abuse.
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]


def bind(server: grpc.aio.Server, host: str, port: int) -> int:
    """Take the port; returns it (port 0: a free one). Raises StartupError in words."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:  # the library's own error does not say why
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        return server.add_insecure_port(f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}")
    except OSError as error:
        cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
        raise StartupError(f"port {port} on {host} {cause}") from error
    except RuntimeError as error:
        raise StartupError(f"port {port} on {host} cannot be opened: {error}") from error


async def within(wait: Awaitable[None], hurry: asyncio.Event) -> None:
    """Wait for `wait`, unless there is hurry."""
    tasks = [asyncio.ensure_future(wait), asyncio.create_task(hurry.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
