"""Compile every kernel for every target and compare with, or rewrite, tools/kernel_budgets.json.

    python tools/kernel_report.py [--write] [--markdown] [TARGET ...]

Exit status 1 when a rule is broken or a number got worse. Needs triton; no GPU, no CUDA toolkit. TRITON_INTERPRET
must be unset.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from inferd_kernels.proof.budgets import Facts, broken_rules, headroom, load_table, measure, regressions
from inferd_kernels.proof.cases import CASES
from inferd_kernels.proof.compiler import TARGETS, blocks_per_multiprocessor

TABLE = Path(__file__).parent / "kernel_budgets.json"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", help=f"default: {' '.join(TARGETS)}")
    parser.add_argument("--write", action="store_true", help="record the numbers of this compilation")
    parser.add_argument("--markdown", action="store_true", help="print the recorded table, compile nothing")
    options = parser.parse_args()
    targets = options.targets or list(TARGETS)
    if options.markdown:
        for arch in targets:
            print_markdown(arch)
        return 0
    problems = [problem for arch in targets for problem in check_target(arch, options.write)]
    print(*problems, sep="\n")
    return 1 if problems else 0


def check_target(arch: str, write: bool) -> list[str]:
    problems: list[str] = []
    rows: dict[str, Facts] = {}
    for case in CASES:
        if arch in case.archs:
            measured = measure(case, arch)
            problems += [f"{arch} {problem}" for problem in broken_rules(case, arch, measured)]
            rows |= measured
            print(arch, case.name, flush=True)
    if write:
        table = load_table(TABLE) | {arch: rows}
        TABLE.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
        return problems
    return problems + [f"{arch} {problem}" for problem in regressions(load_table(TABLE).get(arch, {}), rows)]


def print_markdown(arch: str) -> None:
    print(f"\n### {arch}\n")
    print("| kernel | registers | spills | shared | blocks/SM | tensor ops | 16 B copies | loop | headroom |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    cases = {case.name: case for case in CASES}
    for key, facts in load_table(TABLE).get(arch, {}).items():
        name = key.rsplit(": ", 1)[0]
        room = headroom(cases[name], arch, facts) if key.endswith(("decode_split", "gemm_small")) else None
        resident = blocks_per_multiprocessor(facts, arch) if arch.startswith("sm") else "-"
        copies = facts.get("async_copy_128", 0) + facts.get("load_128", 0) + facts.get("store_128", 0)
        print(
            f"| {key} | {facts['regs']} | {facts['spills']} | {facts['shared']} | {resident} "
            f"| {facts.get('tensor', 0)} | {copies} | {facts.get('loop', 0)} | {f'{room:.1f}' if room else ''} |"
        )


if __name__ == "__main__":
    sys.exit(main())
