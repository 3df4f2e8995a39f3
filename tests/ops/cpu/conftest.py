"""Engines of every instruction set that this processor has, and random inputs in the layouts of the kernel door."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from inferd_kernels.cpu.engine import NativeEngine
from inferd_kernels.cpu.native import NativeOps
from inferd_kernels.ops import PagedBatch
from inferd_kernels.weights import QuantizedWeight

FLOAT16_FIELDS = {  # byte offsets of the float16 fields of a block
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q4_k": (0, 2),
    "q5_k": (0, 2),
    "q6_k": (208,),
}


def available(isa: str) -> bool:
    try:
        NativeEngine(1, isa)
    except ValueError:
        return False
    return True


ISAS = [isa for isa in ("baseline", "avx2", "avx512") if available(isa)]
VARIANTS = [(isa, 1) for isa in ISAS] + [(ISAS[-1], 2)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def engines() -> dict[tuple[str, int], NativeOps]:
    return {(isa, threads): NativeOps(NativeEngine(threads, isa)) for isa in ISAS for threads in (1, 2)}


@pytest.fixture(params=VARIANTS, ids=lambda variant: f"{variant[0]}-{variant[1]}")
def ops(request: pytest.FixtureRequest, engines: dict[tuple[str, int], NativeOps]) -> NativeOps:
    return engines[request.param]


@pytest.fixture(scope="session")
def random_blocks() -> Callable[..., QuantizedWeight]:
    def make(kind: str, rows: int, width: int, seed: int = 0) -> QuantizedWeight:
        """Random bits in every field; scales of about 0.01."""
        generator = torch.Generator().manual_seed(seed)
        per_block, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
        blocks = torch.randint(0, 256, (rows, width // per_block, num_bytes), generator=generator, dtype=torch.uint8)
        for at in FLOAT16_FIELDS[kind]:
            scales = (torch.rand(rows, width // per_block, generator=generator) * 0.01 + 1e-4).half()
            blocks[:, :, at : at + 2] = scales.unsqueeze(-1).view(torch.uint8)
        return QuantizedWeight(blocks.flatten(1), kind, (rows, width))

    return make


@pytest.fixture(scope="session")
def paged_batch() -> Callable[..., PagedBatch]:
    def make(new_tokens: list[int], seq_lens: list[int], page: int, first_block: int = 1) -> PagedBatch:
        """Sequences with blocks of their own, in descending order of block number, tables padded with -1."""
        counts = [-(-length // page) for length in seq_lens]
        tables = torch.full((len(seq_lens), max(counts) + 1), -1, dtype=torch.int32)
        for row, count in enumerate(counts):
            start = first_block + sum(counts[:row])
            tables[row, :count] = torch.arange(start + count - 1, start - 1, -1, dtype=torch.int32)
        pairs = list(zip(new_tokens, seq_lens, strict=True))
        positions = torch.cat([torch.arange(length - new, length) for new, length in pairs])
        owners = torch.repeat_interleave(torch.arange(len(seq_lens)), torch.tensor(new_tokens))
        slots = tables[owners, positions // page].long() * page + positions % page
        starts = torch.tensor([0, *torch.tensor(new_tokens).cumsum(0).tolist()], dtype=torch.int32)
        lengths = torch.tensor(seq_lens, dtype=torch.int32)
        decodes = sum(new == 1 for new in new_tokens)
        return PagedBatch(positions, slots, starts, lengths, tables, decodes, max(new_tokens), max(seq_lens))

    return make
