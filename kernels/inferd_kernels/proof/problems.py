"""Input builders for kernel proofs: small, odd-shaped, and poisoned wherever a kernel has no business.

Block 0 is never allocated and holds NaN, as does every slot without a token; block tables are padded with -1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from inferd_kernels.operands import Attention, AttentionShape, KVCache, PagedBatch
from inferd_kernels.reference import quantize_rows

QUANTIZED = (torch.float8_e4m3fn, torch.int8)
# Relative error in the Frobenius norm against float64, by storage type.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 8e-3}


@dataclass(frozen=True)
class AttentionProblem:
    q: torch.Tensor
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    batch: PagedBatch
    shape: AttentionShape
    scales: tuple[torch.Tensor, torch.Tensor] | None
    sinks: torch.Tensor | None

    @property
    def attention(self) -> Attention:
        return Attention(self.shape, KVCache(self.k_cache, self.v_cache, self.scales), sinks=self.sinks)

    def row(self, index: int) -> AttentionProblem:
        """The decode problem of sequence `index` alone."""
        rows = slice(index, index + 1)
        batch = paged_batch([1], [int(self.batch.seq_lens[index])], self.batch.block_tables[rows].clone())
        batch = replace(batch, max_seq_len=self.batch.max_seq_len)
        return AttentionProblem(
            self.q[rows].clone(), self.k_cache, self.v_cache, batch, self.shape, self.scales, self.sinks
        )


def allocate(lens: list[int], page: int, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """(block tables [B, max_blocks], number of blocks) with scattered blocks, 0 unused."""
    need = [-(-length // page) for length in lens]
    free = torch.randperm(sum(need) + 1, generator=generator).int() + 1
    tables = torch.full((len(lens), max([*need, 1])), -1, dtype=torch.int32)
    for index, count in enumerate(need):
        tables[index, :count] = free[:count]
        free = free[count:]
    return tables, sum(need) + 2


def paged_batch(queries: list[int], lens: list[int], tables: torch.Tensor, page: int = 16) -> PagedBatch:
    """The PagedBatch in which sequence i has queries[i] tokens in this step, ending a context of lens[i]."""
    positions = [length - count + i for count, length in zip(queries, lens, strict=True) for i in range(count)]
    owners = [index for index, count in enumerate(queries) for _ in range(count)]
    slots = [
        int(tables[owner, position // page]) * page + position % page if position >= 0 else -1
        for owner, position in zip(owners, positions, strict=True)
    ]
    decodes = next((i for i, count in enumerate(queries) if count != 1), len(queries))
    starts = torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return PagedBatch(
        positions=torch.tensor(positions, dtype=torch.int64),
        slots=torch.tensor(slots, dtype=torch.int64),
        cu_seqlens=starts,
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        block_tables=tables,
        num_decodes=decodes,
        max_query_len=max([*queries, 0]),
        max_seq_len=max([*lens, 0]),
    )


def attention_problem(  # noqa: PLR0913 - all but three are options by name
    queries: list[int],
    lens: list[int],
    shape: AttentionShape,
    *,
    page: int = 16,
    dtype: torch.dtype = torch.float32,
    cache: torch.dtype | None = None,
    sinks: bool = False,
    seed: int = 0,
) -> AttentionProblem:
    generator = torch.Generator().manual_seed(seed)
    tables, blocks = allocate(lens, page, generator)
    size = (blocks, page, shape.num_kv_heads, shape.head_dim)
    used = torch.zeros(blocks, page, dtype=torch.bool)
    for index, length in enumerate(lens):
        for position in range(length):
            used[tables[index, position // page], position % page] = True
    caches, scales = [], []
    for _ in range(2):
        values = torch.randn(size, generator=generator)
        if cache in QUANTIZED:
            values, scale = quantize_rows(values, cache)
            scale[~used] = float("nan")
            scales.append(scale)
            values.view(torch.uint8)[~used] = 0x7F  # NaN in fp8 e4m3
        else:
            values[~used] = float("nan")
            values = values.to(cache or dtype)
        caches.append(values)
    return AttentionProblem(
        q=torch.randn((sum(queries), shape.num_heads, shape.head_dim), generator=generator).to(dtype),
        k_cache=caches[0],
        v_cache=caches[1],
        batch=paged_batch(queries, lens, tables, page),
        shape=shape,
        scales=(scales[0], scales[1]) if scales else None,
        sinks=torch.randn(shape.num_heads, generator=generator) if sinks else None,
    )


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; infinite when out holds NaN."""
    wide = expected.double()
    error = (out.double() - wide).norm() / wide.norm().clamp(min=1e-30)
    return float("inf") if bool(error.isnan()) else float(error)
