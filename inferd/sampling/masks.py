"""Token masks of constrained rows: one bit per token, applied to all rows at once on the logits' device."""

from __future__ import annotations

import numpy as np
import torch


def apply_masks(logits: torch.Tensor, rows: list[int], masks: list[bytes], first: int = 0) -> None:
    """logits [S, V] float32 of the tokens first, first + 1, .., in place: -inf for what the rows' masks leave out.
    Bits as in StepPlan.masks."""
    vocab_size = first + logits.shape[1]
    width = -(-vocab_size // 8)
    packed = np.zeros((len(rows), width), np.uint8)
    for row, mask in zip(packed, masks, strict=True):
        bits = np.frombuffer(mask, np.uint8, min(len(mask), width))
        row[: bits.size] = bits
    if logits.device.type == "cpu":
        allowed = torch.from_numpy(np.unpackbits(packed, axis=1, count=vocab_size, bitorder="little").view(np.bool_))[
            :, first:
        ]
    else:  # the packed bits are an eighth of what would have to be copied
        bit = torch.arange(8, dtype=torch.uint8, device=logits.device)
        spread = torch.from_numpy(packed).to(logits.device, non_blocking=True).unsqueeze(-1) >> bit & 1
        allowed = spread.view(len(rows), -1)[:, first:vocab_size].bool()
    if len(rows) == len(logits):
        logits.masked_fill_(~allowed, -torch.inf)
    else:
        index = torch.tensor(rows, device=logits.device)
        logits[index] = logits[index].masked_fill(~allowed, -torch.inf)
