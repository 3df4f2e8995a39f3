"""Counts of the front as plain numbers; they become Prometheus' only when scraped, so that a step costs little."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate

from inferd.messages import EngineStats, Ready
from inferd.request import FinishReason
from inferd.step import RankTimings

LATENCY_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0),
)
TOKEN_BUCKETS = tuple(float(2**k) for k in range(18))

FINISH_LABELS = {
    FinishReason.EOS: "eos",
    FinishReason.STOP_TOKEN: "stop_token",
    FinishReason.STOP_STRING: "stop_string",
    FinishReason.MAX_TOKENS: "max_tokens",
    FinishReason.CONTEXT_FULL: "context_full",
    FinishReason.TIME_LIMIT: "time_limit",
    FinishReason.ABORTED: "abort",
}
ERROR_LABEL = "error"
REFUSALS = ("missing_token", "bad_token", "forbidden")
RATE_WINDOW_S = 8.0
ENGINE_TOTALS = (
    *("preemptions", "prefix_queries", "prefix_hits", "computed_tokens", "steps"),
    *("draft_tokens", "accepted_draft_tokens"),
)


class Histogram:
    """Cumulative buckets with an upper bound each; observe() takes the same value many times at once."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float, count: int = 1) -> None:
        self._counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def cumulative(self) -> list[tuple[str, float]]:
        """(le, count) pairs, +Inf last."""
        bounds = [*map(repr, self.bounds), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._counts), strict=True)]


def latency_histogram() -> Histogram:
    return Histogram(LATENCY_BUCKETS)


def token_histogram() -> Histogram:
    return Histogram(TOKEN_BUCKETS)


class RateMeter:
    """How fast a total grows, over about the last window_s seconds. Samples it a few times a second at most."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, int]] = deque()

    def note(self, now: float, total: int) -> None:
        samples = self._samples
        if not samples or now - samples[-1][0] >= self._window_s / 16:
            samples.append((now, total))
            while len(samples) > 1 and samples[1][0] <= now - self._window_s:
                samples.popleft()

    def rate(self, now: float, total: int) -> float:
        """Per second; 0 when nothing was noted within the window."""
        recent = [sample for sample in self._samples if sample[0] >= now - self._window_s]
        if not recent or total == recent[0][1]:
            return 0.0
        return (total - recent[0][1]) / max(now - recent[0][0], self._window_s / 16)


@dataclass(slots=True)
class FrontMetrics:
    """One writer (the event loop), read by the exporter's thread. Totals never fall when the core restarts."""

    admitted_requests: int = 0
    rejected_requests: int = 0
    resumed_requests: int = 0
    engine_restarts: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    finished: dict[str, int] = field(default_factory=lambda: dict.fromkeys([*FINISH_LABELS.values(), ERROR_LABEL], 0))
    refused_calls: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REFUSALS, 0))
    last_step_at: float = 0.0  # CLOCK_MONOTONIC; 0: never
    token_rate: RateMeter = field(default_factory=lambda: RateMeter(RATE_WINDOW_S))
    stats: EngineStats | None = None  # of the core of the moment
    engine: Ready | None = None
    ranks: list[RankTimings] = field(default_factory=list)  # of the core of the moment, where it has several workers
    time_to_first_token: Histogram = field(default_factory=latency_histogram)
    inter_token_latency: Histogram = field(default_factory=latency_histogram)
    e2e_latency: Histogram = field(default_factory=latency_histogram)
    queue_time: Histogram = field(default_factory=latency_histogram)
    prefill_time: Histogram = field(default_factory=latency_histogram)
    iteration_tokens: Histogram = field(default_factory=token_histogram)
    request_prompt_tokens: Histogram = field(default_factory=token_histogram)
    request_generation_tokens: Histogram = field(default_factory=token_histogram)
    _before: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ENGINE_TOTALS, 0))

    def on_admitted(self, prompt_tokens: int) -> None:
        self.admitted_requests += 1
        self.prompt_tokens += prompt_tokens

    def on_scheduled(self, queue_s: float, prefill_s: float) -> None:
        self.queue_time.observe(queue_s)
        self.prefill_time.observe(prefill_s)

    def on_step(self, stats: EngineStats, now: float) -> None:
        """`now` is CLOCK_MONOTONIC seconds."""
        if self.stats is None or stats.steps != self.stats.steps:
            self.last_step_at = now
            if stats.step_tokens:
                self.iteration_tokens.observe(stats.step_tokens)
        self.stats = stats
        self.token_rate.note(now, self.generation_tokens)

    def on_finished(self, reason: FinishReason, completion_tokens: int) -> None:
        self.finished[FINISH_LABELS[reason]] += 1
        self.request_generation_tokens.observe(completion_tokens)

    def on_unfinished(self, choices: int, *, failed: bool) -> None:
        """Choices that ended without a finish: cancelled by the caller, or failed."""
        self.finished[ERROR_LABEL if failed else FINISH_LABELS[FinishReason.ABORTED]] += choices

    def on_complete(self, total_s: float, prompt_tokens: int) -> None:
        self.e2e_latency.observe(total_s)
        self.request_prompt_tokens.observe(prompt_tokens)

    def on_ready(self, ready: Ready) -> None:
        self.engine = ready

    def on_lost(self) -> None:
        """Keep the dead core's totals: its successor counts from zero."""
        self.engine_restarts += 1
        for name in self._before:
            self._before[name] = self.engine_total(name)
        self.stats = None
        self.ranks = []

    def engine_total(self, name: str) -> int:
        """A total of EngineStats over all cores so far."""
        now: int = getattr(self.stats, name) if self.stats else 0
        return self._before[name] + now
