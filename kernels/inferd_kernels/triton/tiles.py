"""The checked-in launch configuration of every kernel, keyed by architecture and shape. Nothing is tuned at run time.

Why each row is what it is, and the compiler's report of it: docs/kernels.md and tools/kernel_budgets.json. A row never
depends on the number of rows in a batch, so a row of a batch is computed by the same binary whatever its neighbours
are. For the same reason kernels do not specialize on arguments that follow from the batch (do_not_specialize): Triton
would compile another binary when one happens to be 1 or a multiple of 16, in the middle of serving.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class AttentionTile:
    rows: int  # query rows of a prefill program; decode packs the query heads of one KV head
    tile: int  # keys per step
    num_warps: int
    num_stages: int
    split: int = 512  # decode: tokens of context per program
    max_splits: int = 32  # decode: of one row; longer contexts get longer splits


@dataclass(frozen=True, slots=True)
class GemmTile:
    rows: int  # tokens
    columns: int  # weight rows
    depth: int  # along K per step
    num_warps: int
    num_stages: int


def next_power_of_2(value: int) -> int:
    return 1 << (value - 1).bit_length()


def padded_head_dim(head_dim: int) -> int:
    """The width of a head's tile in registers: a power of two that tensor cores take. Raises ValueError above 256."""
    if head_dim > 256:
        raise ValueError(f"head dim {head_dim} has no kernel configuration; the largest is 256")
    return max(16, next_power_of_2(head_dim))


# Families of architectures that share a configuration.
FAMILIES = {
    "sm_80": "ampere", "sm_86": "ada", "sm_89": "ada", "sm_90": "hopper", "sm_100": "blackwell", "sm_103": "blackwell",
    "sm_120": "ada", "sm_121": "ada", "gfx942": "cdna", "gfx950": "cdna", "interpreter": "interpreter",
}  # fmt: skip

# (family, bytes of a cached element, padded head dim) -> decode. "any" serves the families without a row of their own.
DECODE = {
    ("any", 2, 64): AttentionTile(16, 128, 4, 3),
    ("any", 2, 128): AttentionTile(16, 64, 4, 3),
    ("any", 2, 256): AttentionTile(16, 32, 4, 3),
    ("any", 1, 64): AttentionTile(16, 128, 4, 2),
    ("any", 1, 128): AttentionTile(16, 128, 4, 3),  # 2 stages spill on sm_100 and sm_120
    ("any", 1, 256): AttentionTile(16, 64, 4, 3),
    ("hopper", 1, 128): AttentionTile(16, 128, 4, 2),
    ("hopper", 1, 256): AttentionTile(16, 64, 4, 2),
    ("cdna", 1, 64): AttentionTile(16, 64, 4, 2),
    ("cdna", 1, 128): AttentionTile(16, 64, 4, 2),
    ("cdna", 1, 256): AttentionTile(16, 32, 4, 2),
    ("interpreter", 0, 0): AttentionTile(16, 32, 4, 2, split=64),
}
# (family, padded head dim) -> prefill
PREFILL = {
    ("any", 64): AttentionTile(64, 64, 4, 2),
    ("any", 128): AttentionTile(64, 32, 4, 2),
    ("any", 256): AttentionTile(64, 32, 8, 2),
    ("hopper", 64): AttentionTile(128, 128, 8, 2),
    ("hopper", 128): AttentionTile(64, 64, 4, 2),
    ("hopper", 256): AttentionTile(128, 32, 8, 2),
    ("blackwell", 64): AttentionTile(128, 128, 8, 2),
    ("blackwell", 128): AttentionTile(128, 64, 8, 2),
    ("blackwell", 256): AttentionTile(64, 32, 8, 2),
    ("cdna", 64): AttentionTile(128, 64, 4, 2),
    ("cdna", 128): AttentionTile(128, 64, 8, 2),
    ("cdna", 256): AttentionTile(64, 32, 8, 2),
    ("interpreter", 0): AttentionTile(16, 16, 4, 2),
}
# The same over an 8-bit cache, where it differs: more keys and values are in registers
PREFILL_8 = {
    ("cdna", 128): AttentionTile(64, 32, 4, 2),
    ("cdna", 256): AttentionTile(64, 32, 4, 2),
    ("hopper", 256): AttentionTile(32, 32, 4, 2),  # more rows or keys spill
}
# (family, bytes of a weight, tokens) -> small GEMM: `tokens` is the bucket, 16 or 64
GEMM_SMALL = {
    ("any", 2, 16): GemmTile(16, 64, 128, 4, 3),
    ("any", 2, 64): GemmTile(64, 64, 64, 4, 4),
    ("any", 1, 16): GemmTile(16, 128, 128, 4, 3),
    ("any", 1, 64): GemmTile(64, 64, 128, 4, 3),
    ("interpreter", 0, 0): GemmTile(16, 32, 32, 4, 2),
}
# (family, tokens) -> 4-bit weights; depth is counted in weights of one plane and may not exceed the group
GEMM_W4 = {
    ("any", 16): GemmTile(16, 64, 128, 4, 3),
    ("any", 64): GemmTile(64, 64, 64, 4, 3),
    ("interpreter", 0): GemmTile(16, 32, 32, 4, 2),
}
# (family, bytes of a weight) -> grouped GEMM of a mixture of experts; rows is the padding of an expert's tokens
GEMM_MOE = {
    ("any", 2): GemmTile(16, 64, 128, 4, 3),
    ("interpreter", 0): GemmTile(16, 32, 32, 4, 2),
}


def architecture() -> str:
    """The active target as sm_NN or gfxNNN; "interpreter" when kernels are interpreted. Raises ValueError when
    unknown."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    from triton.runtime import driver

    target = driver.active.get_current_target()
    name = f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch).split(":")[0]
    if name not in FAMILIES:
        raise ValueError(f"GPU architecture {name} has no kernel configuration; known: {', '.join(sorted(FAMILIES))}")
    return name


def converts_fp8(arch: str) -> bool:
    return arch not in ("sm_80", "sm_86")


def targets_ptx() -> bool:
    """Whether kernels may hold inline PTX: on NVIDIA, but not in the interpreter."""
    return architecture().startswith("sm_")


def decode_tile(arch: str, element: int, head_dim: int, kv_heads: int) -> AttentionTile:
    """The row for a cache of `element`-byte values. Few KV heads get shorter splits, so that a small batch fills the
    GPU."""
    family = FAMILIES[arch]
    if family == "interpreter":
        return DECODE[(family, 0, 0)]
    key = (min(element, 2), min(256, max(64, next_power_of_2(head_dim))))
    tile = DECODE.get((family, *key)) or DECODE[("any", *key)]
    return replace(tile, split=256) if kv_heads <= 2 else tile


def prefill_tile(arch: str, element: int, head_dim: int) -> AttentionTile:
    """The row for a cache of `element`-byte values."""
    family = FAMILIES[arch]
    dim = 0 if family == "interpreter" else min(256, max(64, next_power_of_2(head_dim)))
    if element == 1 and (family, dim) in PREFILL_8:
        return PREFILL_8[(family, dim)]
    return PREFILL.get((family, dim)) or PREFILL[("any", dim)]


def gemm_small_tile(arch: str, element: int, tokens: int) -> GemmTile:
    family = FAMILIES[arch]
    if family == "interpreter":
        return GEMM_SMALL[(family, 0, 0)]
    key = (min(element, 2), 16 if tokens <= 16 else 64)
    return GEMM_SMALL.get((family, *key)) or GEMM_SMALL[("any", *key)]


def gemm_w4_tile(arch: str, tokens: int, group: int) -> GemmTile:
    family = FAMILIES[arch]
    bucket = 0 if family == "interpreter" else 16 if tokens <= 16 else 64
    tile = GEMM_W4.get((family, bucket)) or GEMM_W4[("any", bucket)]
    return replace(tile, depth=group) if group < tile.depth else tile


def gemm_moe_tile(arch: str, element: int) -> GemmTile:
    family = FAMILIES[arch]
    key = 0 if family == "interpreter" else min(element, 2)
    return GEMM_MOE.get((family, key)) or GEMM_MOE[("any", key)]
