"""Print the native CPU ops' times against the machine's limits."""

from __future__ import annotations

import argparse

import torch
from inferd_kernels.cpu.bench import measure, measure_limits
from inferd_kernels.cpu.engine import NativeEngine
from inferd_kernels.cpu.native import NativeOps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--isa", default="")
    parser.add_argument("--seconds", type=float, default=0.2, help="per op")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ops = NativeOps(NativeEngine(arguments.threads, arguments.isa))
    limits = measure_limits(ops)
    print(f"{ops.engine.isa}, {ops.engine.threads} threads: reads {limits.read / 1e9:.1f} GB/s, ", end="")
    print(f"float32 {limits.float_ops / 1e9:.0f} GFLOP/s, 8-bit products {limits.byte_ops / 1e9:.0f} GOP/s")
    print(f"{'op':18}{'shape':34}{'us':>10}{'GB/s':>8}{'GOP/s':>8}{'of limit':>10}")
    for row in measure(ops, limits, arguments.seconds):
        rates = f"{row.bytes_per_second / 1e9:8.1f}{row.ops_per_second / 1e9:8.0f}{row.share:10.0%}"
        print(f"{row.op:18}{row.shape:34}{row.seconds * 1e6:10.1f}{rates}", flush=True)


if __name__ == "__main__":
    main()
