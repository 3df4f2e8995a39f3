"""Between host and device, without holding up either: one copy per direction and step, through pinned memory.

On a CPU the same packing is done without the copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

ALIGNMENT = 16  # bytes; what vector loads want


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors of `device`: views of one buffer, which is copied without waiting for the device."""
    sizes = [-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in arrays]
    staging = torch.empty(sum(sizes), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for array, part in zip(arrays, staging.split(sizes), strict=True):
        part.numpy()[: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
    moved = staging.to(device, non_blocking=True)
    return [
        part[: array.nbytes].view(_torch_type(array)).view(array.shape)
        for array, part in zip(arrays, moved.split(sizes), strict=True)
    ]


def _torch_type(array: np.ndarray) -> torch.dtype:
    return torch.from_numpy(np.empty(0, array.dtype)).dtype


class Download:
    """Tensors of a step that go to the host together: add() them all, start() once, then read() waits for the copy."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._parts: list[torch.Tensor] = []
        self._bounds = [0]
        self._host: torch.Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def add(self, values: torch.Tensor) -> int:
        """Take a tensor of int32 or float32; the number to read() it by."""
        assert values.dtype in (torch.int32, torch.float32), f"{values.dtype} is not copied"
        self._parts.append(values.contiguous())
        self._bounds.append(self._bounds[-1] + values.numel())
        return len(self._parts) - 1

    def start(self) -> None:
        """Enqueue the copy behind what computes the tensors."""
        if not self._parts:
            return
        packed = torch.cat([part.view(-1).view(torch.int32) for part in self._parts])
        if self._device.type != "cuda":
            self._host = packed
            return
        self._host = torch.empty(packed.shape, dtype=packed.dtype, pin_memory=True)
        self._host.copy_(packed, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record()

    def read(self, number: int) -> np.ndarray:
        """The values of tensor `number`, in its shape and type."""
        assert self._host is not None, "read before start"
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        part = self._parts[number]
        values = self._host[self._bounds[number] : self._bounds[number + 1]]
        return values.view(part.dtype).view(part.shape).numpy()
