"""Print the roofline model: expected time and limiting resource per kernel, with published figures of others beside it.

    python tools/roofline.py [--context TOKENS]

Nothing here was measured by this project; the assumptions are printed with the table.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from inferd_kernels.proof import roofline
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
    quantized,
    step_time,
)

TABLE = load_table(Path(__file__).parent / "kernel_budgets.json")
# By others, as they published it; not checked here.
PUBLISHED = {
    "decode attention": "vLLM's Triton kernel: 100.7 % of FlashAttention-3 (H100, Llama-3.1-8B, B 1)",
    "gate_up, 4 bits": "Triton W4A16 kernels: 25-46 % of Marlin at up to 64 tokens",
    "gate_up, 8 bits": "H20, 16 tokens, 24576 x 7168: DeepGEMM 93 us, Triton 119",
    "sample, top-k and top-p": "128 x 131072, top-k, top-p: FlashInfer 200, 130 us; Triton 300, 530; sort 2060, 2320",
    "prefill attention": "H100, D 128: FlashAttention-3 590-620 TFLOPS; FlashAttention-2 style in Triton 458-477",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", type=int, default=2048, help="tokens of context per sequence")
    context = parser.parse_args().context
    for device in DEVICES:
        for model in MODELS:
            print_model(device, model, TABLE[device.arch], context)
    print(f"\nAssumptions\n{roofline.__doc__}")


def print_model(device: Device, model: Model, table: dict[str, Facts], context: int) -> None:
    print(f"\n{device.name}, {model.name}, context {context}: us (limit), floor at peak in brackets")
    columns = [decode_step(device, model, table, batch, context) for batch in BATCHES]
    others = [quantized(device, model, table, batch, context) if batch <= 64 else [] for batch in BATCHES]
    print(f"  {'kernel':32s}" + "".join(f"{f'B {batch}':>30s}" for batch in BATCHES))
    for row in zip(*columns, strict=True):
        print(line(row))
    totals = [step_time(column, model) * 1e3 for column in columns]
    print(f"  {'decode step, ms (tokens/s)':32s}" + "".join(
        f"{f'{ms:.2f} ({batch / ms * 1e3:,.0f})':>30s}" for ms, batch in zip(totals, BATCHES, strict=True)
    ))  # fmt: skip
    print("  instead of a row above, up to 64 sequences:")
    for row in zip(*(column for column in others if column), strict=True):
        print(line(row))
    for tokens in (1024, 8192):
        item = prefill_attention(device, model, table, tokens)
        rate = 2.0 * tokens * tokens * model.heads * model.head_dim / item.time / 1e12
        print(
            f"  prefill attention, {tokens} tokens: {cell(item)}, {rate:.0f} TFLOPS   {PUBLISHED['prefill attention']}"
        )


def line(row: tuple[Estimate, ...]) -> str:
    cells = "".join(f"{cell(item):>30s}" for item in row)
    return f"  {row[0].kernel:32s}{cells}   {PUBLISHED.get(row[0].kernel, '')}".rstrip()


def cell(item: Estimate) -> str:
    return f"{item.time * 1e6:,.1f} ({item.limit}) [{item.floor * 1e6:,.1f}]"


if __name__ == "__main__":
    main()
