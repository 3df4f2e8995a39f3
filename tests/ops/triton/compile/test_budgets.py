"""Compiled code of every kernel held to the rules and to the recorded table, without a GPU."""

from collections import defaultdict
from pathlib import Path

import pytest
import torch
from inferd_kernels.proof import cases
from inferd_kernels.proof.budgets import broken_rules, load_table, measure, regressions
from inferd_kernels.proof.cases import CASES, Case
from inferd_kernels.proof.compiler import offline
from inferd_kernels.triton.backend import TritonOps

TRITON = TritonOps()

TABLE = load_table(Path(__file__).parents[4] / "tools" / "kernel_budgets.json")
FAST = [(case, arch) for case in CASES for arch in case.fast]
REST = [(case, arch) for case in CASES for arch in case.archs if arch not in case.fast]


def name(value: object) -> str:
    return value.name if isinstance(value, Case) else str(value)


def check(case: Case, arch: str) -> None:
    rows = measure(case, arch)
    assert broken_rules(case, arch, rows) == []
    assert regressions(TABLE.get(arch, {}), rows) == []


@pytest.mark.parametrize(("case", "arch"), FAST, ids=name)
def test_within_budget(case: Case, arch: str) -> None:
    check(case, arch)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "arch"), REST, ids=name)
def test_within_budget_on_the_other_targets(case: Case, arch: str) -> None:
    check(case, arch)


def test_the_table_has_every_case_and_nothing_else() -> None:
    for case in CASES:
        for arch in case.archs:
            for kernel in case.kernels:
                assert f"{case.name}: {kernel}" in TABLE[arch]
    known = {case.name for case in CASES}
    assert {key.rsplit(": ", 1)[0] for rows in TABLE.values() for key in rows} == known


def test_a_worse_number_and_a_spill_are_reported() -> None:
    case = next(case for case in CASES if case.name == "SiLU * up")
    key = "SiLU * up: silu_mul"
    recorded = TABLE["sm_90"][key]
    assert regressions(TABLE["sm_90"], {key: recorded | {"regs": recorded["regs"] + 1}})
    assert regressions(TABLE["sm_90"], {key: recorded | {"load_128": 0}})
    assert regressions({}, {key: recorded})
    assert broken_rules(case, "sm_90", {key: recorded | {"spills": 1}})
    assert broken_rules(case, "sm_90", {key: recorded | {"shared": 300_000}})


def test_one_binary_for_every_batch_size() -> None:
    """Batch size is not part of what is compiled: a row's arithmetic cannot depend on it, and no size met for the first
    time makes a server compile. Matmuls have one binary per bucket of up to 16 and up to 64 rows."""
    digests: dict[int, list[str]] = {}
    weight = torch.empty(4096, dtype=torch.bfloat16)
    for rows in (1, 2, 16, 17, 32, 64):
        with offline("sm_90") as launches:
            cases.attention(128, torch.bfloat16, True, rows=rows)()
            x = torch.empty(rows, 4096, dtype=torch.bfloat16)
            TRITON.add_rms_norm(x, x, weight, 1e-5)
            TRITON.activate_gated(x, "silu")
            cases.sampling(rows)
            cases.w4_gemm(rows, 128, False)()
            cases.fp8_gemm(rows)()
        assert launches[0].grid[0] == rows
        digests[rows] = [launch.digest() for launch in launches]
    small, large = digests[1], digests[64]
    assert digests[2] == digests[16] == small
    assert digests[17] == digests[32] == large
    shared = [one == other for one, other in zip(small, large, strict=True)]
    assert shared.count(False) == 2


def test_one_binary_for_every_bound_on_the_context_and_every_place_in_a_batch() -> None:
    binaries: defaultdict[str, set[str]] = defaultdict(set)
    for context, decodes in ((2048, 0), (8192, 1), (131072, 5)):
        with offline("sm_90") as launches:
            cases.attention(128, torch.bfloat16, True, rows=4, context=context)()
            cases.prompts(decodes, context)
        for launch in launches:
            binaries[launch.name].add(launch.digest())
    assert {name: len(digests) for name, digests in binaries.items()} == {
        "decode_split": 1,
        "decode_merge": 1,
        "prefill": 1,
    }
