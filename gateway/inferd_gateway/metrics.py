"""Prometheus metrics of the gateway. Every label comes from a closed set: routes, statuses, served models."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import accumulate
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)


class Loaded(Protocol):
    @property
    def reported_load(self) -> int | None: ...


def load_or_nan(backend: Loaded) -> float:
    load = backend.reported_load
    return math.nan if load is None else load


class Buckets:
    """One series of a histogram, as plain numbers: observing costs a stream's message next to nothing."""

    def __init__(self) -> None:
        self._counts = [0] * (len(SECONDS) + 1)
        self._total = 0.0

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(SECONDS, seconds)] += 1
        self._total += seconds

    def add_to(self, family: HistogramMetricFamily, label: str) -> None:
        bounds = [*map(repr, SECONDS), "+Inf"]
        family.add_metric((label,), list(zip(bounds, accumulate(self._counts), strict=True)), self._total)


class SecondsHistogram(Collector):
    """A histogram of durations with one label; read at each scrape. Written by the event loop alone."""

    def __init__(self, name: str, help_text: str, label: str, registry: CollectorRegistry) -> None:
        self._family = partial(HistogramMetricFamily, name, help_text, labels=(label,))
        self._series: defaultdict[str, Buckets] = defaultdict(Buckets)
        registry.register(self)

    def labels(self, value: str) -> Buckets:
        return self._series[value]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = self._family()
        for label, buckets in self._series.items():
            buckets.add_to(family, label)
        yield family


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
        self.request_seconds = SecondsHistogram(
            "inferd_gateway_request_seconds", "Time to the end of the response.", "route", registry
        )
        self.first_token_seconds = SecondsHistogram(
            "inferd_gateway_time_to_first_token_seconds",
            "From the request's arrival to the first token.",
            "model_name",
            registry,
        )
        self.inter_token_seconds = SecondsHistogram(
            "inferd_gateway_inter_token_seconds",
            "Between two messages of a stream, per message.",
            "model_name",
            registry,
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
