"""On a machine with a GPU: time the kernels of a decode step and write them beside the model as a markdown page.

    python tools/gpu_report.py [--out gpu-report.md] [--context TOKENS]

Exit status 2 without a GPU that the roofline model knows.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch
from inferd_kernels.ops import Ops, load_ops
from inferd_kernels.proof import roofline
from inferd_kernels.proof.budgets import Facts, load_table
from inferd_kernels.proof.timing import (
    MakeLaunch,
    contiguous_prefill,
    decode_launches,
    fp8_attention,
    fp8_matmul,
    prefill_launch,
    seconds,
    this_device,
    w4_matmul,
)

TABLE = Path(__file__).parent / "kernel_budgets.json"
MODEL = roofline.MODELS[0]
PROMPTS = (1024, 8192)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-report.md"))
    parser.add_argument("--context", type=int, default=2048)
    options = parser.parse_args()
    device = this_device()
    if device is None:
        print(f"no GPU with a roofline model here (known: {', '.join(item.name for item in roofline.DEVICES)})")
        return 2
    facts = load_table(TABLE)[device.arch]
    title = f"# {torch.cuda.get_device_name()}, {MODEL.name}, context {options.context}"
    lines = [title, "", f"torch {torch.__version__}, CUDA {torch.version.cuda}", ""]
    lines += decode_rows(device, facts, options.context) + prefill_rows(device, facts)
    options.out.write_text("\n".join(lines) + "\n")
    print(options.out)
    return 0


def decode_rows(device: roofline.Device, facts: dict[str, Facts], context: int) -> list[str]:
    """Each kernel of a decode step, ours beside torch's varlen attention, and quantized weights and caches."""
    ops = load_ops("cuda")
    lines = ["| kernel | B | measured us | model us | model / measured |", "| --- | --- | --- | --- | --- |"]
    for batch in roofline.BATCHES:
        estimates = {item.kernel: item for item in roofline.decode_step(device, MODEL, facts, batch, context)}
        for kernel, make in decode_launches(ops, MODEL, batch, context).items():
            measured, modelled = seconds(make), estimates[kernel].time
            lines.append(
                f"| {kernel} | {batch} | {measured * 1e6:.1f} | {modelled * 1e6:.1f} | {modelled / measured:.2f} |"
            )
        for name, make in beside(ops, batch, context).items():
            lines.append(f"| {name} | {batch} | {seconds(make) * 1e6:.1f} | | |")
    return [*lines, ""]


def beside(ops: Ops, batch: int, context: int) -> dict[str, MakeLaunch]:
    """What the model has no row for."""
    launches: dict[str, MakeLaunch] = {}
    if (varlen := varlen_ops()) is not None:
        theirs = decode_launches(varlen, MODEL, batch, context)
        launches["decode attention, torch's varlen"] = theirs["decode attention"]
    return {
        **launches,
        "decode attention, fp8 cache": partial(fp8_attention, MODEL, batch, context),
        "gate_up, fp8": partial(fp8_matmul, ops, MODEL, batch),
        "gate_up, 4 bits": partial(w4_matmul, ops, MODEL, batch),
    }


def varlen_ops() -> Ops | None:
    """None where this torch's varlen attention cannot read a paged cache."""
    try:
        return load_ops("cuda", "varlen")
    except ValueError:
        return None


def prefill_rows(device: roofline.Device, facts: dict[str, Facts]) -> list[str]:
    """Ours over pages, torch's over pages where it can, and over keys and values that lie in a row."""
    lines = ["| prefill attention | tokens | measured us | model us | TFLOPS |", "| --- | --- | --- | --- | --- |"]
    for tokens in PROMPTS:
        launches: dict[str, MakeLaunch] = {"triton": partial(prefill_launch, load_ops("cuda", "triton"), MODEL, tokens)}
        if (varlen := varlen_ops()) is not None:
            launches["torch's varlen"] = partial(prefill_launch, varlen, MODEL, tokens)
        launches["torch's SDPA, no pages"] = partial(contiguous_prefill, MODEL, tokens)
        modelled = roofline.prefill_attention(device, MODEL, facts, tokens).time
        for name, make in launches.items():
            measured = seconds(make)
            rate = 2.0 * tokens * tokens * MODEL.heads * MODEL.head_dim / measured / 1e12
            lines.append(f"| {name} | {tokens} | {measured * 1e6:.1f} | {modelled * 1e6:.1f} | {rate:.0f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
