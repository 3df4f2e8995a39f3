"""The listening half of the daemon: the gRPC server, health and metrics around one front, and how they end."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import grpc
from google.protobuf.descriptor import ServiceDescriptor

from inferd.address import bare_host
from inferd.config import InferdConfig, ServerConfig
from inferd.errors import Draining
from inferd.front.constraints import ConstraintChecker, vocabulary_of
from inferd.front.engine import FrontEngine
from inferd.front.exporter import Exporter, FrontCollector
from inferd.front.metrics import FrontMetrics
from inferd.server.admin_service import AdminService
from inferd.server.auth import KeyCheck
from inferd.server.call import CallRunner, Handler
from inferd.server.handlers import service_handler
from inferd.server.health import PROCESS, READINESS, SERVICE_NAME, HealthService
from inferd.server.inference_service import InferenceService
from inferd.server.inputs import Serving
from inferd.server.keys import KeyRing, admin_ring, data_ring, identify, load_keys
from inferd.server.listen import bind, listen_admin
from inferd.server.model_service import ModelService
from inferd.server.mux import mux_handler
from inferd.server.pooling_service import PoolingService
from inferd.server.reflection import reflection_handlers
from inferd.server.served_model import ServedModel
from inferd.server.text_pool import TextPool
from inferd.server.tls import server_credentials
from inferd.v1 import admin_pb2, inference_pb2, model_pb2

logger = logging.getLogger("inferd.server")

STOP_GRACE_S = 1.0
MAX_PENDING_CALLS = 20_000  # the library answers CANCELLED beyond it, which clients do not retry


@dataclass(slots=True)
class AdminListener:
    """The server of AdminService, where it shall listen, and where it does."""

    server: grpc.aio.Server
    where: str
    address: str | None = None


class Daemon:
    """start() listens, drain() ends politely; the front and its core belong to the caller."""

    def __init__(self, config: InferdConfig, model: ServedModel, front: FrontEngine) -> None:
        self._config = config
        self._front = front
        self._pool = TextPool()
        self._checker = ConstraintChecker(partial(vocabulary_of, model.tokenizer), front.introduce)
        self._exporter: Exporter | None = None
        keys = load_keys(config.server)
        ring = data_ring(config.server, keys)
        self._runner = CallRunner(
            config.server.stall_timeout_s, config.server.limits.max_request_id_chars, identify if ring else None
        )
        self._draining = False
        self._watch: asyncio.Task[None] | None = None
        self.health = HealthService()
        self.model = model
        self.port = 0
        self._server = make_server(config.server, ring, self._runner, front.metrics)
        self._add_services()
        self._admin: AdminListener | None = None
        if config.server.admin_listen is not None:
            self._admin = AdminListener(self._make_admin(admin_ring(keys)), config.server.admin_listen)

    async def start(self) -> None:
        """Listen. Raises StartupError when a port cannot be had, or a key or certificate not be used."""
        server = self._config.server
        self.port = bind(self._server, server.host, server.port, server_credentials(server))
        if self._admin is not None:
            self._admin.address = listen_admin(self._admin.server, self._admin.where, server_credentials(server))
            await self._admin.server.start()
        if server.metrics_port is not None:
            collector = FrontCollector(self._front.metrics, self._config.engine, self.model.name)
            self._exporter = Exporter(collector, bare_host(server.host), server.metrics_port)
        await self._server.start()
        self._watch = asyncio.create_task(self._runner.watch_readers())
        self._front.on_change(self._update_health)
        logger.info(
            "listening on %s:%d",
            server.host,
            self.port,
            extra={"model": self.model.name, "metrics": self.metrics_port, "admin": self.admin_address},
        )

    @property
    def admin_address(self) -> str | None:
        """Where AdminService is reached."""
        return self._admin.address if self._admin else None

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
        self._front.gate.drain("the server is shutting down", ending=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.server.drain_timeout_s):
                await within(self._idle(), hurry)
        if live := self._front.admission.live:
            logger.warning("ending %d choices that did not finish in time", live)
        self._front.live.fail_all(Draining("the server shut down before the generation ended", retry_after_s=1.0))
        await self.close()

    async def close(self) -> None:
        """Stop listening and wait for the handlers; what still runs is cancelled."""
        self.health.close()
        self._runner.closing.set()
        servers = [self._server] if self._admin is None else [self._server, self._admin.server]
        await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in servers))
        if self._runner.tasks:
            await asyncio.wait(self._runner.tasks, timeout=STOP_GRACE_S)
        if self._watch is not None:
            self._watch.cancel()
        self._pool.close()
        await self._checker.close()
        if self._exporter is not None:
            await asyncio.to_thread(self._exporter.close)

    async def _idle(self) -> None:
        while self._runner.active:
            await asyncio.wait(self._runner.active)

    def _update_health(self) -> None:
        self.health.set(PROCESS, serving=not self._draining)
        self.health.set(READINESS, serving=self._front.serving and not self._draining)

    def _add_services(self) -> None:
        inference = InferenceService(self._config, self.model, self._front, self._pool, self._checker)
        serving = Serving(self._config, self.model, self._front, self._pool)
        pooling = PoolingService(serving, inference.tokenize)
        models = ModelService(self._config, self.model, lambda: self._front.ready, str(uuid.uuid4()), self._pool)
        services = {
            inference_pb2.DESCRIPTOR.services_by_name["InferenceService"]: {
                **inference.handlers(),
                **pooling.handlers(),
                "GenerateMux": mux_handler(inference.generate, self._runner),
            },
            model_pb2.DESCRIPTOR.services_by_name["ModelService"]: models.handlers(),
        }
        self._serve_on(self._server, services)

    def _make_admin(self, ring: KeyRing) -> grpc.aio.Server:
        server = make_server(self._config.server, ring, self._runner, self._front.metrics)
        admin = AdminService(self._front, self.model.name)
        self._serve_on(server, {admin_pb2.DESCRIPTOR.services_by_name["AdminService"]: admin.handlers()})
        return server

    def _serve_on(self, server: grpc.aio.Server, services: Mapping[ServiceDescriptor, Mapping[str, Handler]]) -> None:
        """These services, health and reflection."""
        handlers = [service_handler(service, built, self._runner) for service, built in services.items()]
        handlers.append(self.health.handler())
        if self._config.server.reflection:
            handlers += reflection_handlers([*(service.full_name for service in services), SERVICE_NAME])
        server.add_generic_rpc_handlers(tuple(handlers))


def make_server(config: ServerConfig, ring: KeyRing, runner: CallRunner, metrics: FrontMetrics) -> grpc.aio.Server:
    """A server that checks keys if there are any."""
    interceptors = [KeyCheck(ring, runner, metrics)] if ring else []
    return grpc.aio.server(interceptors=interceptors, options=server_options(config))


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


async def within(wait: Awaitable[None], hurry: asyncio.Event) -> None:
    """Wait for `wait`, unless there is hurry."""
    tasks = [asyncio.ensure_future(wait), asyncio.create_task(hurry.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
