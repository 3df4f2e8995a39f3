"""Extracts of stored tensors as tensors: in the checkpoint's formats, in the row order that the kernels want."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from inferd_kernels.weights import CheckpointWeight, QuantizedWeight

from inferd.errors import StartupError
from inferd.models.stored import Extract
from inferd.models.tensor_files import SlicedFiles, TensorFiles

BLOCK_BYTES = 1 << 20


class ExtractReader:
    """A whole model's files are mapped, so that what needs no conversion is not copied; of a shard, exactly its own
    bytes are read.

    notify gets the fraction of num_tensors that are read.
    """

    def __init__(self, is_whole: bool, num_tensors: int, notify: Callable[[float], None]) -> None:
        self._files = TensorFiles() if is_whole else SlicedFiles()
        self._notify = notify
        self._num_tensors = max(num_tensors, 1)
        self._num_read = 0

    @property
    def bytes_read(self) -> int:
        return self._files.bytes_read

    def close(self) -> None:
        self._files.close()

    def read(self, extract: Extract) -> CheckpointWeight:
        """Raises StartupError when the file cannot be read, or not as the extract says."""
        record = extract.record
        weight = self._files.read(record, _span(extract.rows), _span(extract.columns))
        weight = _every(weight, extract.rows, extract.columns)
        self._count()
        if not extract.is_transposed:
            return _in_order(extract, weight)
        if isinstance(weight, QuantizedWeight):
            raise StartupError(f"{record.file}: tensor {record.name} is stored transposed and quantized")
        return weight.t().contiguous()

    def blocks(self, extract: Extract) -> Iterator[CheckpointWeight]:
        """A matrix like read, but some rows at a time, read when asked for; as one if its rows are stored otherwise."""
        if extract.is_transposed or (extract.rows is not None and extract.rows.step > 1):
            yield self.read(extract)
            return
        record = extract.record
        rows = extract.rows or range(record.shape[0])
        unit = extract.head_dim if extract.rotary_dim else 1  # rows change places within a head
        count = max(BLOCK_BYTES * record.shape[0] // record.nbytes // unit, 1) * unit
        for start in range(rows.start, rows.stop, count):
            part = range(start, min(start + count, rows.stop))
            yield _in_order(extract, self._files.read(record, part, extract.columns))
        self._count()

    def _count(self) -> None:
        self._num_read += 1
        self._notify(min(self._num_read / self._num_tensors, 1.0))


def _span(part: range | None) -> range | None:
    """What must be read to have every item of `part`."""
    return part if part is None else range(part.start, part.stop)


def _every(weight: CheckpointWeight, rows: range | None, columns: range | None) -> CheckpointWeight:
    """The items that belong to the parts, of what was read for them."""
    row_step, column_step = (1 if part is None else part.step for part in (rows, columns))
    if row_step == column_step == 1:
        return weight
    if isinstance(weight, QuantizedWeight):
        return weight.rows(torch.arange(0, weight.shape[0], row_step))
    return weight[::row_step] if weight.dim() == 1 else weight[::row_step, ::column_step]


def _in_order(extract: Extract, weight: CheckpointWeight) -> CheckpointWeight:
    if not extract.rotary_dim:
        return weight
    order = half_split_order(weight.shape[0], extract.head_dim, extract.rotary_dim, extract.rotary_start)
    return weight.rows(order) if isinstance(weight, QuantizedWeight) else weight[order]


def half_split_order(rows: int, head_dim: int, rotary_dim: int, start: int = 0) -> torch.Tensor:
    """Row order that turns interleaved rotary pairs (0, 1), (2, 3), .. of the first R = rotary_dim rows of each head
    into the halves form: new row h * D + half * R/2 + i is old row h * D + 2 i + half. The rest stays."""
    heads = torch.arange(rows).view(-1, head_dim)
    end = start + rotary_dim
    turned = heads[:, start:end].reshape(-1, rotary_dim // 2, 2).transpose(1, 2).flatten(1)
    return torch.cat((heads[:, :start], turned, heads[:, end:]), dim=1).flatten()
