"""Compile kernels for GPUs that are not there, through the launch code that production runs.

    with offline("sm_90") as launches:
        backend.paged_attention(...)      # CPU tensors; nothing executes
    report(launches[0].kernel)            # registers, spills, shared memory, instructions

A stand-in driver names the target, and every launch stops after compilation, so argument specialization, constants,
warps and stages are exactly those of a real launch. Needs neither a driver nor the CUDA toolkit.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_89": GPUTarget("cuda", 89, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "sm_120": GPUTarget("cuda", 120, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx950": GPUTarget("hip", "gfx950", 64),
}
# Bytes of shared memory that one block may use. The compiler does not check it: a launch would fail.
SHARED_LIMIT = {"sm_80": 163, "sm_89": 99, "sm_90": 227, "sm_100": 227, "sm_120": 99, "gfx942": 64, "gfx950": 160}
# (KiB of shared memory, warps) of one multiprocessor
MULTIPROCESSOR = {"sm_80": (164, 64), "sm_89": (100, 48), "sm_90": (228, 64), "sm_100": (228, 64), "sm_120": (100, 48)}
TENSOR_OPS = ("HGMMA", "QGMMA", "IGMMA", "HMMA", "QMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA")


@dataclass(frozen=True)
class Launch:
    name: str
    grid: tuple[int, ...]
    kernel: Any

    def digest(self) -> str:
        """Hash of the machine code: equal for equal binaries."""
        asm = self.kernel.asm
        return hashlib.sha256(asm["cubin"] if "cubin" in asm else asm["hsaco"]).hexdigest()


class StandInDriver:
    """What the runtime asks of a driver before it launches."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return str(self.target.arch)  # the key of the in-process kernel cache

    def set_current_device(self, device: object) -> None:
        pass

    def get_current_stream(self, device: object = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def offline(arch: str) -> Iterator[list[Launch]]:
    """Launches inside compile for `arch` and are appended to the list. Not reentrant, not for threads."""
    launches: list[Launch] = []
    run, active = JITFunction.run, driver._active

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        options.setdefault("enable_fp_fusion", True)
        compiled = run(kernel, *args, grid=grid, warmup=True, **options)
        launches.append(Launch(kernel.fn.__name__, tuple(grid), compiled))
        return compiled

    driver.set_active(StandInDriver(TARGETS[arch]))
    JITFunction.run = compile_only
    try:
        yield launches
    finally:
        JITFunction.run = run
        driver._active = active


def disassemble(kernel: Any, option: str) -> str:
    tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([str(tool), option, file.name], capture_output=True, text=True, check=True).stdout


def report(kernel: Any) -> dict[str, int]:
    """Static facts: registers, spills (local loads and stores), shared bytes, warps, tensor-core and copy instructions.

    loop: warp instructions of the busiest loop (the one with most tensor-core instructions, else the longest), 0
    without.
    """
    facts = {"warps": int(kernel.metadata.num_warps), "shared": int(kernel.metadata.shared)}
    return facts | (_nvidia(kernel) if "cubin" in kernel.asm else _amd(kernel.asm["amdgcn"]))


def _nvidia(kernel: Any) -> dict[str, int]:
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", disassemble(kernel, "-res-usage"))
    assert usage is not None, "cuobjdump printed no resource usage"
    lines = [
        (int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", disassemble(kernel, "-sass"))
    ]
    ops = [(at, _opcode(text)) for at, text in lines]
    names = [name for _, name in ops]
    return {
        "regs": int(usage[1]),
        "spills": _count(names, "LDL", "STL") + int(usage[4]),
        "tensor": _count(names, *TENSOR_OPS),
        "wgmma": _count(names, "HGMMA", "QGMMA", "IGMMA", "UTC"),
        "fp8_mma": _count(names, "QGMMA", "QMMA", "UTCQMMA"),
        "async_copy": _count(names, "LDGSTS"),
        "async_copy_128": sum(name.startswith("LDGSTS") and ".128" in name for name in names),
        "load_128": sum(name.startswith("LDG.") and ".128" in name for name in names),
        "store_128": sum(name.startswith("STG") and ".128" in name for name in names),
        "int_to_float": _count(names, "I2F"),
        "sass": len(names),
        "loop": _busiest_loop(lines, ops),
    }


def _opcode(text: str) -> str:
    words = re.sub(r"^@!?U?P\w+\s+", "", text.strip()).split()
    return words[0] if words else ""


def _count(names: list[str], *prefixes: str) -> int:
    return sum(name.startswith(prefixes) for name in names)


def _busiest_loop(lines: list[tuple[int, str]], ops: list[tuple[int, str]]) -> int:
    best = (0, 0)
    for at, text in lines:
        jump = re.search(r"\bBRA\S*\s+.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            body = [name for place, name in ops if int(jump[1], 16) <= place <= at]
            best = max(best, (_count(body, *TENSOR_OPS), len(body)))
    return best[1]


def _amd(assembly: str) -> dict[str, int]:
    def field(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", assembly)
        return int(found[1]) if found else 0

    return {
        "regs": field("vgpr_count"),
        "spills": field("vgpr_spill_count"),
        "tensor": len(re.findall(r"^\s+v_mfma\w*", assembly, re.MULTILINE)),
    }


def blocks_per_multiprocessor(facts: dict[str, int], arch: str) -> int:
    """Resident blocks that registers, shared memory and warps allow (65,536 registers, 1 KiB reserved per block)."""
    shared, warps = MULTIPROCESSOR[arch]
    registers = -(-facts["regs"] * 32 // 256) * 256 * facts["warps"]
    return min(32, 65536 // registers, shared * 1024 // (facts["shared"] + 1024), warps // facts["warps"])
