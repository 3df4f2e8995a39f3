"""`inferd bench ops`: every native CPU op against the limits that this machine was measured to have."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from inferd_kernels.cpu.bench import Limits, Measurement, measure, measure_limits
from inferd_kernels.cpu.build import BuildError
from inferd_kernels.cpu.engine import NativeEngine
from inferd_kernels.cpu.native import NativeOps

from inferd.errors import StartupError

HEADER = f"{'op':18}{'shape':34}{'us':>10}{'GB/s':>8}{'GOP/s':>8}{'of limit':>10}"


def open_ops(threads: int | None, isa: str) -> NativeOps:
    """The native ops of one instruction set. Raises StartupError: no compiler, or a processor without `isa`."""
    torch.set_num_threads(1)  # torch only prepares inputs here; its threads would spin beside the team's
    try:
        return NativeOps(NativeEngine(threads, isa))
    except (BuildError, ValueError) as error:
        raise StartupError(f"the native ops are not available: {error}") from None


def measure_ops(ops: NativeOps, match: str, seconds: float) -> tuple[Limits, Iterator[Measurement]]:
    """The machine's limits, and a measurement (best call of `seconds`) of each op whose name contains `match`."""
    limits = measure_limits(ops)
    return limits, measure(ops, limits, seconds, match)


def limits_line(ops: NativeOps, limits: Limits) -> str:
    rates = f"float32 {limits.float_ops / 1e9:.0f} GFLOP/s, 8-bit products {limits.byte_ops / 1e9:.0f} GOP/s"
    return f"{ops.engine.isa}, {ops.engine.threads} threads: reads {limits.read / 1e9:.1f} GB/s, {rates}"


def row_line(row: Measurement) -> str:
    rates = f"{row.bytes_per_second / 1e9:8.1f}{row.ops_per_second / 1e9:8.0f}{row.share:10.0%}"
    return f"{row.op:18}{row.shape:34}{row.seconds * 1e6:10.1f}{rates}"
