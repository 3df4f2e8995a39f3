"""Print the roofline model: expected time and limiting resource per kernel, with published figures of others beside it.

    python tools/roofline.py [--context TOKENS]

Nothing here was measured by this project: see inferd_kernels/proof/roofline.py for the assumptions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from inferd_kernels.proof.budgets import Facts, load_table
from inferd_kernels.proof.roofline import (
    BATCHES,
    DEVICES,
    MODELS,
    Device,
    Estimate,
    Model,
    decode_step,
    prefill_attention,
    step_time,
)

TABLE = load_table(Path(__file__).parent / "kernel_budgets.json")
PUBLISHED = """
Published by others (not checked here):
  FlashAttention-3, H100, bf16 forward, D 128: 590-620 TFLOPS; Triton FlashAttention-2 style: 458-477 TFLOPS
  vLLM Triton unified attention, H100, Llama-3.1-8B, long decode at B 1: 100.7 % of FlashAttention-3
  Marlin W4A16 at M <= 64: Triton W4A16 kernels reach 25-46 % of it
  DeepGEMM fp8, H20, M 16, 24576 x 7168: 93 us; Triton: 119 us
  FlashInfer top-k / top-p over 128 x 131072: 0.20 / 0.13 ms; Triton: 0.30 / 0.53 ms; sort: 2.06 / 2.32 ms
  Llama-3-8B, bf16, H100: the weights alone take 4.8 ms per step at 3.35 TB/s
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048, help="tokens of context per sequence")
    context = parser.parse_args().context
    for device in DEVICES:
        for model in MODELS:
            print_model(device, model, TABLE[device.arch], context)
    print(PUBLISHED)


def print_model(device: Device, model: Model, table: dict[str, Facts], context: int) -> None:
    print(f"\n{device.name}, {model.name}, context {context}: us (limit), floor at peak in brackets")
    columns = [decode_step(device, model, table, batch, context) for batch in BATCHES]
    print(f"  {'kernel':32s}" + "".join(f"{f'B {batch}':>30s}" for batch in BATCHES))
    for row in zip(*columns, strict=True):
        print(f"  {row[0].kernel:32s}" + "".join(f"{cell(item):>30s}" for item in row))
    totals = [step_time(column, model) * 1e3 for column in columns]
    print(f"  {'decode step, ms (tokens/s)':32s}" + "".join(
        f"{f'{ms:.2f} ({batch / ms * 1e3:,.0f})':>30s}" for ms, batch in zip(totals, BATCHES, strict=True)
    ))  # fmt: skip
    for tokens in (1024, 8192):
        item = prefill_attention(device, model, table, tokens)
        rate = 2.0 * tokens * tokens * model.heads * model.head_dim / item.time / 1e12
        print(f"  prefill attention, {tokens} tokens: {cell(item)}, {rate:.0f} TFLOPS")


def cell(item: Estimate) -> str:
    return f"{item.time * 1e6:,.1f} ({item.limit}) [{item.floor * 1e6:,.1f}]"


if __name__ == "__main__":
    main()
