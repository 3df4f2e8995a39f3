"""The benchmark measures what it says: limits of the machine, and calls that really run."""

from __future__ import annotations

import itertools

from inferd_kernels.cpu.bench import Limits, attention_work, best_time, measure, measure_limits, sample_work
from inferd_kernels.cpu.native import NativeOps


def test_limits_are_those_of_a_computer(ops: NativeOps) -> None:
    limits = measure_limits(ops, seconds=0.0)
    assert 1e8 < limits.read < 1e13
    assert 1e8 < limits.float_ops < 1e14
    assert 1e8 < limits.byte_ops < 1e15


def test_every_work_runs(ops: NativeOps) -> None:
    for work in itertools.chain(attention_work(ops), sample_work(ops)):
        assert best_time(work.run, 0.0) > 0


def test_the_share_is_that_of_the_slower_limit(ops: NativeOps) -> None:
    (first,) = itertools.islice(measure(ops, Limits(1e9, 1e12, 1e12), seconds=0.0), 1)
    assert first.op == "linear q4_1"
    assert first.bytes_per_second * first.seconds > 3072 * 576 / 2
    assert abs(first.share - first.bytes_per_second / 1e9) < 1e-6
