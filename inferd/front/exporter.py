"""FrontMetrics in Prometheus' words, and the HTTP server that says them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from inferd import __version__
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.front.metrics import FrontMetrics, Histogram


class FrontCollector(Collector):
    """All families carry model_name; every other label comes from a closed enum, so the number of series is fixed."""

    def __init__(self, metrics: FrontMetrics, config: EngineConfig, model_name: str) -> None:
        self._metrics = metrics
        self._config = config
        self._model = model_name

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._counters()
        yield from self._histograms()
        yield from self._ranks()
        yield from self._router_gauges()

    def _gauges(self) -> Iterator[Metric]:
        stats = self._metrics.stats
        yield self._gauge("inferd_requests_running", "Choices in the running batch.", stats.running if stats else 0)
        yield self._gauge("inferd_requests_waiting", "Choices waiting for a place.", stats.waiting if stats else 0)
        waiting_tokens = stats.waiting_prompt_tokens if stats else 0
        yield self._gauge("inferd_waiting_prompt_tokens", "Prompt tokens of waiting requests.", waiting_tokens)
        yield self._gauge("inferd_kv_cache_usage_ratio", "KV blocks in use by live requests, 0 to 1.", self._kv_usage())
        up = 1 if self._metrics.engine is not None and stats is not None else 0
        yield self._gauge("inferd_engine_up", "1 once the engine of the moment has reported.", up)
        info = GaugeMetricFamily("inferd_build_info", "Version of the daemon.", labels=("model_name", "version"))
        info.add_metric((self._model, __version__), 1)
        yield info

    def _counters(self) -> Iterator[Metric]:
        metrics, total = self._metrics, self._metrics.engine_total
        for name, help_text, value in (
            ("inferd_prompt_tokens", "Prompt tokens of admitted requests.", metrics.prompt_tokens),
            ("inferd_generation_tokens", "Tokens generated.", metrics.generation_tokens),
            ("inferd_requests_admitted", "Requests admitted.", metrics.admitted_requests),
            ("inferd_admission_rejections", "Requests refused because the queue was full.", metrics.rejected_requests),
            ("inferd_engine_restarts", "Times the engine core was restarted.", metrics.engine_restarts),
            ("inferd_requests_resumed", "Requests resumed on a restarted engine.", metrics.resumed_requests),
            ("inferd_preemptions", "Sequences preempted.", total("preemptions")),
            ("inferd_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", total("prefix_queries")),
            ("inferd_prefix_cache_hits", "Prompt tokens found in the prefix cache.", total("prefix_hits")),
            ("inferd_computed_tokens", "Tokens computed, prefill and decode.", total("computed_tokens")),
            ("inferd_engine_steps", "Engine steps.", total("steps")),
            ("inferd_draft_tokens", "Tokens guessed by speculation and checked.", total("draft_tokens")),
            ("inferd_accepted_draft_tokens", "Guesses that were right.", total("accepted_draft_tokens")),
        ):
            family = CounterMetricFamily(name, help_text, labels=("model_name",))
            family.add_metric((self._model,), value)
            yield family
        finished = CounterMetricFamily(
            "inferd_requests_finished", "Choices ended, by reason.", labels=("model_name", "reason")
        )
        for reason, count in metrics.finished.items():
            finished.add_metric((self._model, reason), count)
        yield finished
        refused = CounterMetricFamily(
            "inferd_calls_refused", "Calls without the right key, by reason.", labels=("model_name", "reason")
        )
        for reason, count in metrics.refused_calls.items():
            refused.add_metric((self._model, reason), count)
        yield refused

    def _ranks(self) -> Iterator[Metric]:
        """Where the time of each worker goes; they count from zero when the group starts again."""
        if not self._metrics.ranks:
            return
        for name, help_text, field in (
            ("inferd_rank_compute_seconds", "Seconds a worker computed.", "compute_s"),
            ("inferd_rank_wait_seconds", "Seconds a worker waited for peers in a step.", "wait_s"),
            ("inferd_rank_steps", "Steps a worker ran.", "steps"),
        ):
            family = CounterMetricFamily(name, help_text, labels=("model_name", "rank", "stage"))
            for each in self._metrics.ranks:
                family.add_metric((self._model, str(each.rank), str(each.stage)), getattr(each, field))
            yield family

    def _histograms(self) -> Iterator[Metric]:
        metrics = self._metrics
        for name, help_text, histogram in (
            ("inferd_time_to_first_token_seconds", "Admission to first token.", metrics.time_to_first_token),
            ("inferd_inter_token_latency_seconds", "Between tokens of a choice.", metrics.inter_token_latency),
            ("inferd_e2e_request_latency_seconds", "Admission to the end.", metrics.e2e_latency),
            ("inferd_request_queue_time_seconds", "Admission to first scheduled.", metrics.queue_time),
            ("inferd_request_prefill_time_seconds", "First scheduled to first token.", metrics.prefill_time),
            ("inferd_iteration_tokens_total", "Tokens computed by one engine step.", metrics.iteration_tokens),
            ("inferd_request_prompt_tokens", "Prompt tokens per request.", metrics.request_prompt_tokens),
            ("inferd_request_generation_tokens", "Tokens per choice.", metrics.request_generation_tokens),
        ):
            yield self._histogram(name, help_text, histogram)

    def _router_gauges(self) -> Iterator[Metric]:
        """The five names that routers for vLLM read (vllm-project/vllm, v1/metrics/loggers.py)."""
        stats, labels = self._metrics.stats, ("model_name", "engine")
        values = (self._model, "0")
        for name, value in (
            ("vllm:num_requests_running", stats.running if stats else 0),
            ("vllm:num_requests_waiting", stats.waiting if stats else 0),
            ("vllm:kv_cache_usage_perc", self._kv_usage()),
        ):
            family = GaugeMetricFamily(name, "For routers; see the inferd_ families.", labels=labels)
            family.add_metric(values, value)
            yield family
        engine = self._metrics.engine
        cache = {
            "block_size": str(engine.block_size if engine else self._config.cache.block_size),
            "num_gpu_blocks": str(engine.num_blocks if engine else 0),
            "enable_prefix_caching": str(self._config.cache.prefix_caching),
            "cache_dtype": self._config.cache.dtype,
        }
        info = GaugeMetricFamily("vllm:cache_config_info", "For routers.", labels=(*labels, *cache))
        info.add_metric((*values, *cache.values()), 1)
        yield info
        lora_labels = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        lora = GaugeMetricFamily("vllm:lora_requests_info", "For routers; no adapters.", labels=(*labels, *lora_labels))
        lora.add_metric((*values, "0", "", ""), 1)
        yield lora

    def _kv_usage(self) -> float:
        stats = self._metrics.stats
        return stats.blocks_used / stats.blocks_total if stats and stats.blocks_total else 0.0

    def _gauge(self, name: str, help_text: str, value: float) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, help_text, labels=("model_name",))
        family.add_metric((self._model,), value)
        return family

    def _histogram(self, name: str, help_text: str, histogram: Histogram) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, help_text, labels=("model_name",))
        family.add_metric((self._model,), histogram.cumulative(), histogram.total)
        return family


class Exporter:
    """GET /metrics on its own port, on a thread of its own."""

    def __init__(self, collector: FrontCollector, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(collector)
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        try:
            started: tuple[WSGIServer, Thread] = start_http_server(port, host, registry)
        except OSError as error:
            cause = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened: {error.strerror}"
            raise StartupError(f"metrics port {port} on {host} {cause}") from error
        self._server, self._thread = started
        self.port: int = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
