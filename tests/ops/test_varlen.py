"""Torch's varlen attention as a backend: what it is asked for, against an emulation of its contract on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from inferd_kernels import varlen
from inferd_kernels.ops import AttentionShape, Ops, load_ops
from inferd_kernels.proof.problems import AttentionProblem, attention_problem, relative_error

REFERENCE = Ops()


def emulated(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
    num_splits: int,
    block_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Queries sit at the end of the used keys; (left, 0) looks `left` keys back, -1 all; no key gives zero."""
    assert num_splits == 1
    assert window_size[1] == 0
    assert max_q == int(cu_seq_q.diff().max())
    out = torch.zeros_like(query)
    for index, used in enumerate(seqused_k.tolist()):
        assert used <= max_k
        begin, end = cu_seq_q[index : index + 2].tolist()
        if block_table is not None:
            keys, values = (cache[block_table[index].long()].flatten(0, 1)[:used] for cache in (key, value))
        else:
            assert cu_seq_k is not None
            first = int(cu_seq_k[index])
            keys, values = key[first : first + used], value[first : first + used]
        if begin == end or not used:
            continue
        rows, columns = torch.arange(used - (end - begin), used)[:, None], torch.arange(used)[None]
        mask = columns <= rows
        if window_size[0] >= 0:
            mask &= columns >= rows - window_size[0]
        parts = (part.transpose(0, 1)[None] for part in (query[begin:end], keys, values))
        done = torch.nn.functional.scaled_dot_product_attention(
            *parts, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
        )
        out[begin:end] = done[0].transpose(0, 1)
    return out


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", emulated)


def attend(problem: AttentionProblem, attention: Any) -> torch.Tensor:
    out: torch.Tensor = attention(problem.q, problem.attention, problem.batch)
    return out


@pytest.mark.parametrize("page", [16, 256])
@pytest.mark.parametrize("window", [0, 1, 20])
def test_mixed_batches_are_the_references(page: int, window: int) -> None:
    shape = AttentionShape(6, 2, 16, 0.3, window=window)
    problem = attention_problem([1, 1, 7, 20], [1, 300, 7, 41], shape, page=page)
    assert relative_error(attend(problem, varlen.paged_attention), attend(problem, REFERENCE.paged_attention)) < 1e-6


def test_a_padded_row_is_zero() -> None:
    problem = attention_problem([1, 1], [9, 0], AttentionShape(2, 2, 16, 0.3))
    out = attend(problem, varlen.paged_attention)
    assert out[0].isfinite().all()
    assert not out[1].any()


def test_what_it_cannot_compute_is_refused() -> None:
    capped = attention_problem([1], [9], AttentionShape(2, 2, 16, 0.3, softcap=5.0))
    with pytest.raises(ValueError, match="soft cap"):
        attend(capped, varlen.paged_attention)
    with pytest.raises(ValueError, match="no sinks"):
        attend(attention_problem([1], [9], AttentionShape(2, 2, 16, 0.3), sinks=True), varlen.paged_attention)
    narrow = attention_problem([1], [9], AttentionShape(2, 2, 16, 0.3), cache=torch.bfloat16)
    with pytest.raises(ValueError, match=r"in torch\.float32, it is torch\.bfloat16"):
        attend(narrow, varlen.paged_attention)
    with pytest.raises(ValueError, match="'varlen' needs a cuda device"):
        load_ops("cpu", "varlen")
