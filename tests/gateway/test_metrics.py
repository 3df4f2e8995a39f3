"""Histograms as plain numbers against the library's own."""

from __future__ import annotations

from inferd_gateway.metrics import SECONDS, SecondsHistogram
from prometheus_client import CollectorRegistry, Histogram


def samples(registry: CollectorRegistry) -> dict[tuple[str, frozenset], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_a_histogram_reads_as_the_librarys_does():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    mine = SecondsHistogram("x_seconds", "Help.", "model_name", ours)
    reference = Histogram("x_seconds", "Help.", ("model_name",), buckets=SECONDS, registry=theirs)
    for label, values in {"a": (0.0, 0.0005, 0.00051, 0.02, 640.0, 641.0), 'b"\n': (0.1, 0.1, 3.0)}.items():
        for value in values:
            mine.labels(label).observe(value)
            reference.labels(label).observe(value)
    assert samples(ours) == samples(theirs)
