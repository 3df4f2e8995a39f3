"""In-place edits of logits before sampling: repetition, presence and frequency penalties, and the grammar's bitmask."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["width"])
def penalize(
    logits_ptr, rows_ptr, tokens_ptr, counts_ptr, repetition_ptr, presence_ptr, frequency_ptr, width, vocab, row_stride,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid (rows, blocks of listed tokens): logit' = (logit / r if logit > 0 else logit * r) - n f - [n > 0] p."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(tokens_ptr + row * width + c, mask=c < width, other=-1)
    listed = (token >= 0) & (token < vocab)
    count = tl.load(counts_ptr + row * width + c, mask=c < width, other=0).to(tl.float32)
    repetition = tl.load(repetition_ptr + row) + tl.zeros([BLOCK], tl.float32)
    where = logits_ptr + tl.load(rows_ptr + row).to(tl.int64) * row_stride + token
    x = tl.load(where, mask=listed, other=0.0).to(tl.float32)
    x = tl.where(x > 0, tl.div_rn(x, repetition), x * repetition)
    x = x - count * tl.load(frequency_ptr + row)
    x = x - tl.where(count > 0, tl.load(presence_ptr + row), 0.0)
    tl.store(where, x.to(logits_ptr.dtype.element_ty), mask=listed)


@triton.jit
def mask_bits(logits_ptr, rows_ptr, bits_ptr, vocab, words, row_stride, BLOCK: tl.constexpr):
    """Grid (rows, blocks of tokens): -inf where the token's bit is 0."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(bits_ptr + row * words + c // 32, mask=c < vocab, other=-1)
    refused = ((word >> (c % 32)) & 1) == 0
    at = logits_ptr + tl.load(rows_ptr + row).to(tl.int64) * row_stride + c
    tl.store(at, float("-inf"), mask=refused & (c < vocab))


def launch_penalties(
    logits: torch.Tensor,
    rows: torch.Tensor,
    tokens: torch.Tensor,
    counts: torch.Tensor,
    repetition: torch.Tensor,
    presence: torch.Tensor,
    frequency: torch.Tensor,
) -> None:
    """Edit rows [R] int32 (distinct) of logits [S,V] at tokens [R,L] int32 (distinct within a row, -1 pads), each seen
    counts [R,L] int32 times in the output; count 0 means in the prompt alone, where only the repetition penalty
    applies. Penalties [R] float32."""
    count, width = tokens.shape
    penalize[(count, -(-width // BLOCK))](
        logits, rows, tokens, counts, repetition, presence, frequency, width, logits.shape[1], logits.stride(0),
        BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip


def launch_bitmask(logits: torch.Tensor, rows: torch.Tensor, bits: torch.Tensor) -> None:
    """-inf in rows [R] int32 of logits [S,V] where bit (token % 32) of bits [R, ceil(V/32)] int32, word token // 32,
    is 0."""
    vocab = logits.shape[1]
    mask_bits[(rows.shape[0], -(-vocab // BLOCK))](
        logits, rows, bits, vocab, bits.shape[1], logits.stride(0), BLOCK=BLOCK, num_warps=4
    )
