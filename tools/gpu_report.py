"""On a machine with a GPU: time the kernels of a decode step and write them beside the model as a markdown page.

    python tools/gpu_report.py [--out gpu-report.md] [--context TOKENS]

Exit status 2 without a GPU that the roofline model knows. Has never run: no machine of this project has a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from inferd_kernels.ops import AttentionShape, Ops, PagedBatch, load_ops
from inferd_kernels.proof import roofline
from inferd_kernels.proof.budgets import load_table

TABLE = Path(__file__).parent / "kernel_budgets.json"
MODEL = roofline.MODELS[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--context", type=int, default=2048)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    device = next((item for item in roofline.DEVICES if item.name.split()[0] in name), None)
    if device is None:
        print(f"no GPU with a roofline model here (found: {name}; known: {[item.name for item in roofline.DEVICES]})")
        return 2
    lines = [f"# {name}, {MODEL.name}, context {options.context}", "", f"torch {torch.__version__}", ""]
    lines += ["| kernel | B | measured us | model us | share |", "| --- | --- | --- | --- | --- |"]
    ops, facts = load_ops("cuda"), load_table(TABLE)[device.arch]
    for batch in roofline.BATCHES:
        estimates = {item.kernel: item for item in roofline.decode_step(device, MODEL, facts, batch, options.context)}
        for kernel, function in launches(ops, batch, options.context).items():
            measured, modelled = seconds(function), estimates[kernel].time
            lines.append(
                f"| {kernel} | {batch} | {measured * 1e6:.1f} | {modelled * 1e6:.1f} | {modelled / measured:.2f} |"
            )
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


def launches(ops: Ops, batch: int, context: int) -> dict[str, Callable[[], object]]:
    """The kernels of a layer on random values, keyed as in the model."""

    def random(*size: int) -> torch.Tensor:
        return torch.randn(size, device="cuda").bfloat16()

    shape = AttentionShape(MODEL.heads, MODEL.kv_heads, MODEL.head_dim, MODEL.head_dim**-0.5)
    blocks = -(-context // 16)
    k_cache, v_cache = (random(batch * blocks, 16, MODEL.kv_heads, MODEL.head_dim) for _ in range(2))
    rows = torch.arange(batch, device="cuda")
    step = PagedBatch(
        positions=rows * 0 + context - 1,
        slots=rows * blocks * 16 + context - 1,
        cu_seqlens=torch.arange(batch + 1, device="cuda", dtype=torch.int32),
        seq_lens=torch.full((batch,), context, device="cuda", dtype=torch.int32),
        block_tables=torch.arange(batch * blocks, device="cuda", dtype=torch.int32).view(batch, blocks),
        num_decodes=batch,
        max_query_len=1,
        max_seq_len=context,
    )
    q, x = random(batch, MODEL.heads, MODEL.head_dim), random(batch, MODEL.hidden)
    norm, gate_up = random(MODEL.hidden), random(2 * MODEL.inner, MODEL.hidden)
    inner = random(batch, 2 * MODEL.inner)
    return {
        "decode attention": lambda: ops.paged_attention(q, k_cache, v_cache, step, shape),
        "add + RMS norm (two per layer)": lambda: ops.add_rms_norm(x, x, norm, 1e-5),
        "gate_up": lambda: ops.linear(x, gate_up),
        "SiLU * up": lambda: ops.silu_mul(inner),
    }


def seconds(function: Callable[[], object]) -> float:
    """Median of 50 replays of a captured graph."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    times: list[float] = []
    for _ in range(50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch leaves Event untyped
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
