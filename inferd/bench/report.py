"""From records to figures: TTFT, inter-token latency, throughput, goodput; as a table, JSON and a plot."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from inferd.bench.clients import Record

PERCENTILES = (50, 90, 99)


def percentile(values: list[float], percent: float) -> float:
    """Linear interpolation between closest ranks; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def inter_token(record: Record) -> list[float]:
    """Seconds per token after the first; a chunk of k tokens counts k times with its share."""
    gaps: list[float] = []
    for (before, had), (after, has) in zip(record.chunks, record.chunks[1:], strict=False):
        gaps += [(after - before) / (has - had)] * (has - had)
    return gaps


def summarize(records: list[Record], wall_s: float, ttft_slo_s: float, itl_slo_s: float) -> dict[str, object]:
    """All figures of a run. goodput counts finished requests within both objectives, per second."""
    done = [record for record in records if record.outcome == "ok"]
    ttfts = [record.ttft for record in records if record.ttft is not None]
    gaps = [gap for record in records for gap in inter_token(record)]
    good = [
        record
        for record in done
        if (record.ttft or 0.0) <= ttft_slo_s and percentile(inter_token(record) or [0.0], 50) <= itl_slo_s
    ]
    milliseconds = {
        name: {f"p{p}": round(percentile(values, p) * 1e3, 2) for p in PERCENTILES}
        for name, values in (
            ("ttft_ms", ttfts),
            ("itl_ms", gaps),
            ("e2e_ms", [record.finished - record.started for record in done]),
        )
    }
    return {
        "requests": len(records),
        "outcomes": dict(Counter(record.outcome for record in records)),
        "wall_s": round(wall_s, 3),
        "prompt_tokens": sum(record.prompt_tokens for record in records),
        "output_tokens": sum(record.output_tokens for record in records),
        "output_tokens_per_s": round(sum(record.output_tokens for record in records) / wall_s, 2),
        "total_tokens_per_s": round(sum(r.output_tokens + r.prompt_tokens for r in records) / wall_s, 2),
        "requests_per_s": round(len(done) / wall_s, 3),
        "goodput_requests_per_s": round(len(good) / wall_s, 3),
        **milliseconds,
    }


def table(summary: dict[str, object]) -> str:
    """The summary as aligned lines."""
    rows = []
    for name, value in summary.items():
        shown = "  ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        rows.append(f"{name:<24} {shown}")
    return "\n".join(rows)


def write_json(path: Path, summary: dict[str, object], records: list[Record]) -> None:
    """The summary and, per request, its outcome and times."""
    requests = [
        {
            "index": record.index,
            "outcome": record.outcome,
            "prompt_tokens": record.prompt_tokens,
            "output_tokens": record.output_tokens,
            "ttft_ms": None if record.ttft is None else round(record.ttft * 1e3, 3),
            "e2e_ms": round((record.finished - record.started) * 1e3, 3),
        }
        for record in records
    ]
    path.write_text(json.dumps({"summary": summary, "requests": requests}, indent=1) + "\n")


def write_plot(path: Path, records: list[Record]) -> None:
    """Cumulative distributions of TTFT and inter-token latency, and tokens out over time, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    ttfts = sorted(record.ttft * 1e3 for record in records if record.ttft is not None)
    gaps = sorted(gap * 1e3 for record in records for gap in inter_token(record))
    for axis, values, label in ((axes[0], ttfts, "TTFT, ms"), (axes[1], gaps, "inter-token latency, ms")):
        axis.plot(values, [(i + 1) / len(values) for i in range(len(values))])
        axis.set(xlabel=label, ylabel="share of samples", ylim=(0, 1))
    first = min(record.started for record in records)
    arrivals = sorted((t - first, n) for record in records for t, n in _increments(record))
    total, xs, ys = 0, [], []
    for when, count in arrivals:
        total += count
        xs.append(when)
        ys.append(total)
    axes[2].plot(xs, ys)
    axes[2].set(xlabel="time, s", ylabel="tokens out")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _increments(record: Record) -> list[tuple[float, int]]:
    counts = [0, *(count for _, count in record.chunks)]
    return [(when, after - before) for (when, after), before in zip(record.chunks, counts, strict=False)]
