"""Token masks of constrained rows: one bit per token, applied on the logits' device."""

from __future__ import annotations

import numpy as np
import torch


def apply_masks(logits: torch.Tensor, rows: list[int], masks: list[bytes], first: int = 0) -> None:
    """logits [S, V] float32 of the tokens first, first + 1, .., in place: -inf for what the rows' masks leave out.
    Bits as in StepPlan.masks."""
    vocab_size = first + logits.shape[1]
    banned = banned_bits(masks, -(-vocab_size // 8))
    if logits.device.type == "cpu":
        # Row by row: what is unpacked stays in the cache until it is used.
        for row, bits in zip(rows, banned, strict=True):
            spread = np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)[first:]
            logits[row].masked_fill_(torch.from_numpy(spread), -torch.inf)
        return
    packed = torch.from_numpy(banned).to(logits.device, non_blocking=True)
    bit = torch.arange(8, dtype=torch.uint8, device=logits.device)
    spread_out = (packed.unsqueeze(-1) >> bit & 1).view(len(rows), -1)[:, first:vocab_size].bool()
    index = torch.tensor(rows, device=logits.device)
    logits[index] = logits[index].masked_fill(spread_out, -torch.inf)


def banned_bits(masks: list[bytes], width: int) -> np.ndarray:
    """[len(masks), width] uint8: the complement of the masks, which may be shorter or longer."""
    banned = np.full((len(masks), width), 0xFF, np.uint8)
    for row, mask in zip(banned, masks, strict=True):
        bits = np.frombuffer(mask, np.uint8)[:width]
        np.invert(bits, out=row[: bits.size])
    return banned
