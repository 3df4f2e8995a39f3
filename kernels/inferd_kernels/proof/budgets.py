"""The table of static facts per kernel and target, and the rules that a new compilation must meet.

Rules for all: no spilled register, shared memory within what a block may use, the instructions a case demands, and no
number
worse than the table's. Issue headroom: bytes a loop reads per clock and multiprocessor against what the memory can
deliver.
"""

from __future__ import annotations

import json
from pathlib import Path

from inferd_kernels.proof.cases import Case
from inferd_kernels.proof.compiler import SHARED_LIMIT, Launch, offline, report

Facts = dict[str, int]
WORSE_WHEN_HIGHER = ("regs", "spills", "shared", "loop")
WORSE_WHEN_LOWER = ("wgmma", "fp8_mma", "async_copy_128", "load_128", "store_128")
# HBM bytes per clock and multiprocessor: H100 SXM, 3.35 TB/s over 132 at 1.755 GHz
HBM_BYTES_PER_CLOCK = {"sm_90": 3.35e12 / 132 / 1.755e9}
ISSUE_SLOTS = 4  # warp instructions per clock and multiprocessor


def compile_case(case: Case, arch: str) -> list[Launch]:
    with offline(arch) as launches:
        case.run()
    names = tuple(launch.name for launch in launches)
    assert names == case.kernels, f"{case.name}: launches {names}, expected {case.kernels}"
    return launches


def measure(case: Case, arch: str) -> dict[str, Facts]:
    """{"case: kernel": facts}; a kernel launched twice by a case appears once per distinct binary."""
    rows: dict[str, Facts] = {}
    for launch in compile_case(case, arch):
        facts, name, number = report(launch.kernel), f"{case.name}: {launch.name}", 1
        while (key := name if number == 1 else f"{name} ({number})") in rows and rows[key] != facts:
            number += 1
        rows[key] = facts
    return rows


def broken_rules(case: Case, arch: str, rows: dict[str, Facts]) -> list[str]:
    """What a compilation may not do, whatever the table says."""
    problems = []
    for key, facts in rows.items():
        if facts["spills"]:
            problems.append(f"{key}: {facts['spills']} spills")
        if facts["shared"] > SHARED_LIMIT[arch] * 1024:
            problems.append(f"{key}: {facts['shared']} bytes of shared memory, {arch} has {SHARED_LIMIT[arch]} KiB")
    main = rows[f"{case.name}: {_main(case)}"]
    kind = "nvidia" if arch.startswith("sm") else "amd"
    for name, least in case.need.get(arch, case.need.get(kind, {})).items():
        if main.get(name, 0) < least:
            problems.append(f"{case.name}: {main.get(name, 0)} {name} instructions, at least {least} needed")
    reached = headroom(case, arch, main)
    if case.headroom and reached is not None and reached < case.headroom:
        problems.append(f"{case.name}: issue headroom {reached:.2f}, at least {case.headroom} needed")
    return problems


def _main(case: Case) -> str:
    return next((name for name in case.kernels if name in ("decode_split", "gemm_small")), case.kernels[0])


def headroom(case: Case, arch: str, facts: Facts) -> float | None:
    """How many times faster than HBM the loop's instructions could be issued; None where it is not defined."""
    if not case.bytes_per_loop or arch not in HBM_BYTES_PER_CLOCK or not facts.get("loop"):
        return None
    clocks = facts["loop"] * facts["warps"] / ISSUE_SLOTS
    return case.bytes_per_loop / clocks / HBM_BYTES_PER_CLOCK[arch]


def regressions(recorded: dict[str, Facts], rows: dict[str, Facts]) -> list[str]:
    """Numbers that are worse than the table's, and rows the table does not have."""
    problems = []
    for key, facts in rows.items():
        old = recorded.get(key)
        if old is None:
            problems.append(f"{key}: not in the table; run tools/kernel_report.py --write")
            continue
        for name in WORSE_WHEN_HIGHER:
            if facts.get(name, 0) > old.get(name, 0):
                problems.append(f"{key}: {name} {facts[name]}, the table says {old.get(name, 0)}")
        for name in WORSE_WHEN_LOWER:
            if facts.get(name, 0) < old.get(name, 0):
                problems.append(f"{key}: {name} {facts.get(name, 0)}, the table says {old[name]}")
    return problems


def load_table(path: Path) -> dict[str, dict[str, Facts]]:
    """{target: {"case: kernel": facts}}."""
    table: dict[str, dict[str, Facts]] = json.loads(path.read_text()) if path.exists() else {}
    return table
