"""Tensors out of checkpoint files: whole by mapping, or the slices that one rank holds by reading just their bytes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from inferd_kernels.reference import dequantize
from inferd_kernels.weights import CheckpointWeight, QuantizedWeight

from inferd.checkpoint import TensorRecord
from inferd.checkpoint.gguf_header import GGML_BLOCKS
from inferd.errors import StartupError

FLOAT_FORMATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class WeightReader(Protocol):
    bytes_read: int

    def read(self, record: TensorRecord, rows: range | None = None, columns: range | None = None) -> CheckpointWeight:
        """Rows and columns (None: all) of a tensor as it is stored: a float tensor in the checkpoint's own dtype, or
        [N, K] quantized blocks; StartupError when the file cannot be read or a quantized tensor is no matrix."""

    def close(self) -> None:
        """What was read stays."""


class TensorFiles:
    """Maps checkpoint files, each once, and cuts tensors out of them without copying.

    The mapping is private: writes do not reach the file. It lives as long as a tensor cut out of it.
    """

    def __init__(self) -> None:
        self.bytes_read = 0
        self._maps: dict[Path, torch.Tensor] = {}

    def read(self, record: TensorRecord, rows: range | None = None, columns: range | None = None) -> CheckpointWeight:
        rows = rows or range(record.shape[0])
        row_bytes = record.nbytes // record.shape[0]
        start = record.offset + rows.start * row_bytes
        raw = self._map(record.file)[start : start + len(rows) * row_bytes]
        self.bytes_read += raw.nbytes
        dtype = FLOAT_FORMATS.get(record.format)
        if dtype is None:
            assert columns is None, "blocks of a whole tensor are not cut"
            return _quantized(record, raw.view(len(rows), row_bytes))
        if start % dtype.itemsize:
            raw = raw.clone()
        tensor = raw.view(dtype).view(len(rows), *record.shape[1:])
        return tensor if columns is None else tensor[:, columns.start : columns.stop]

    def close(self) -> None:
        self._maps.clear()

    def _map(self, path: Path) -> torch.Tensor:
        if path not in self._maps:
            try:
                size = path.stat().st_size
                self._maps[path] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise StartupError(f"{path}: cannot be mapped ({error})") from None
        return self._maps[path]


class SlicedFiles:
    """Reads slices into memory of their own: no byte that belongs to another rank is read or stays resident."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self._files: dict[Path, int] = {}

    def read(self, record: TensorRecord, rows: range | None = None, columns: range | None = None) -> CheckpointWeight:
        dtype = FLOAT_FORMATS.get(record.format)
        if dtype is None:
            return self._read_quantized(record, rows, columns)
        row_bytes = record.nbytes // record.shape[0]
        span = None if columns is None else (columns.start * dtype.itemsize, columns.stop * dtype.itemsize)
        raw = self._read_rows(record, row_bytes, rows or range(record.shape[0]), span)
        shape = (raw.shape[0], *record.shape[1:]) if columns is None else (raw.shape[0], len(columns))
        return torch.from_numpy(raw).view(dtype).view(shape)

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _read_quantized(self, record: TensorRecord, rows: range | None, columns: range | None) -> CheckpointWeight:
        """Whole blocks stay blocks. Columns that cut through blocks are dequantized, since half a block is none."""
        num_rows, num_columns = _matrix_shape(record)
        block, block_bytes = GGML_BLOCKS[record.format]
        columns = columns or range(num_columns)
        first, last = columns.start // block, -(-columns.stop // block)
        row_bytes = num_columns // block * block_bytes
        span = (first * block_bytes, last * block_bytes)
        raw = self._read_rows(record, row_bytes, rows or range(num_rows), span)
        weight = QuantizedWeight(torch.from_numpy(raw), record.format, (raw.shape[0], (last - first) * block))
        offset = columns.start - first * block
        if offset == 0 and len(columns) == weight.shape[1]:
            return weight
        try:
            return dequantize(weight)[:, offset : offset + len(columns)].contiguous()
        except ValueError as error:
            raise StartupError(f"{record.file}: tensor {record.name}: {error}") from None

    def _read_rows(self, record: TensorRecord, row_bytes: int, rows: range, span: tuple[int, int] | None) -> np.ndarray:
        """Bytes [span) of each of the rows, [rows, bytes] uint8; consecutive bytes in one call."""
        begin, end = span or (0, row_bytes)
        out = np.empty((len(rows), end - begin), np.uint8)
        start = record.offset + rows.start * row_bytes
        if end - begin == row_bytes:
            self._fill(record, out.data.cast("B"), start)
        else:
            for index in range(len(rows)):
                self._fill(record, out[index].data, start + index * row_bytes + begin)
        self.bytes_read += out.nbytes
        return out

    def _fill(self, record: TensorRecord, buffer: memoryview, offset: int) -> None:
        try:
            if record.file not in self._files:
                self._files[record.file] = os.open(record.file, os.O_RDONLY)
            while buffer:
                count = os.preadv(self._files[record.file], [buffer], offset)
                if count == 0:
                    raise StartupError(f"{record.file}: ends inside tensor {record.name}")
                buffer, offset = buffer[count:], offset + count
        except OSError as error:
            raise StartupError(f"{record.file}: cannot be read ({error.strerror})") from None


def _matrix_shape(record: TensorRecord) -> tuple[int, int]:
    if len(record.shape) != 2:
        raise StartupError(f"{record.file}: tensor {record.name} of type {record.format} is no matrix")
    return record.shape[0], record.shape[1]


def _quantized(record: TensorRecord, blocks: torch.Tensor) -> QuantizedWeight:
    return QuantizedWeight(blocks, record.format, (blocks.shape[0], _matrix_shape(record)[1]))
