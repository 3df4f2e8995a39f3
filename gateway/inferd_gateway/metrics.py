"""Prometheus metrics of the gateway. Every label comes from a closed set: routes, statuses, served models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640,
)  # fmt: skip


class Loaded(Protocol):
    @property
    def reported_load(self) -> int | None: ...


def load_or_nan(backend: Loaded) -> float:
    load = backend.reported_load
    return math.nan if load is None else load


class Metrics:
    """Owns the registry; one per gateway process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "inferd_gateway_requests_total",
            "HTTP requests by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "inferd_gateway_request_seconds",
            "Time to the end of the response.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "inferd_gateway_time_to_first_token_seconds",
            "From the request's arrival to the first token.",
            ("model_name",),
            buckets=SECONDS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "inferd_gateway_inter_token_seconds",
            "Between two messages of a stream, per message.",
            ("model_name",),
            buckets=SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "inferd_gateway_prompt_tokens_total",
            "Prompt tokens of finished requests.",
            ("model_name",),
            registry=registry,
        )
        self.generated_tokens = Counter(
            "inferd_gateway_generated_tokens_total",
            "Generated tokens of finished requests.",
            ("model_name",),
            registry=registry,
        )
        self.open_streams = Gauge("inferd_gateway_open_streams", "Generations in progress.", registry=registry)
        self.backend_load = Gauge(
            "inferd_gateway_backend_load",
            "Choices of all callers that run or wait at a daemon, as it reports; NaN while it does not.",
            ("backend",),
            registry=registry,
        )
        self.disconnects = Counter(
            "inferd_gateway_client_disconnects_total", "Requests whose client went away.", registry=registry
        )
        self.ignored_params = Counter(
            "inferd_gateway_ignored_params_total", "Body fields that nobody knows.", ("route",), registry=registry
        )

    def watch_loads(self, backends: Mapping[str, Loaded]) -> None:
        """Read at each scrape."""
        for name, backend in backends.items():
            self.backend_load.labels(name).set_function(partial(load_or_nan, backend))

    def exposition(self) -> bytes:
        return generate_latest(self._registry)
