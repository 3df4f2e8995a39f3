"""PhaseReporter: what is sent, what is kept."""

from __future__ import annotations

from inferd.core.startup import PhaseReporter
from inferd.messages import Phase


def test_starts_ends_and_a_few_in_between_are_sent():
    clock = iter([0.0, 1.0, 1.01, 1.02, 1.5, 2.0, 2.5, 4.0]).__next__
    sent: list[Phase] = []
    reporter = PhaseReporter(sent.append, clock)
    reporter.progress("weights", 0.0)
    reporter.progress("weights", 0.1)
    reporter.progress("weights", 0.2)
    reporter.progress("weights", 0.6)
    reporter.progress("weights", 1.0)
    reporter.progress("cache", 0.0)
    reporter.finish()
    assert [(phase.name, phase.fraction, phase.elapsed_s) for phase in sent] == [
        ("weights", 0.0, 0.0),
        ("weights", 0.6, 0.5),
        ("weights", 1.0, 1.0),
        ("cache", 0.0, 0.0),
    ]
    assert reporter.seconds == {"weights": 1.5, "cache": 1.5}
