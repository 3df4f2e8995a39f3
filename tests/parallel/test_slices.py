"""Reading slices gives what cutting whole tensors gives, and reads no other byte."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from inferd_kernels.weights import QuantizedWeight

from inferd.checkpoint import TensorRecord
from inferd.errors import StartupError
from inferd.models.tensor_files import SlicedFiles, TensorFiles

ROWS, COLUMNS = 12, 128


@pytest.fixture
def floats(tmp_path: Path) -> TensorRecord:
    values = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    file = tmp_path / "floats"
    file.write_bytes(b"123" + values.view(torch.uint8).numpy().tobytes())
    return TensorRecord("w", "bf16", (ROWS, COLUMNS), file, 3, ROWS * COLUMNS * 2)


@pytest.fixture
def blocks(tmp_path: Path) -> TensorRecord:
    values = np.random.default_rng(1).standard_normal((ROWS, COLUMNS), np.float32)
    data = quantize(values, GGMLQuantizationType.Q4_0)
    file = tmp_path / "blocks"
    file.write_bytes(b"12345" + data.tobytes())
    return TensorRecord("w", "q4_0", (ROWS, COLUMNS), file, 5, data.nbytes)


@pytest.mark.parametrize("rows", [None, range(3, 7)])
@pytest.mark.parametrize("columns", [None, range(10, 100)])
def test_float_slices(floats: TensorRecord, rows: range | None, columns: range | None) -> None:
    files = SlicedFiles()
    part = files.read(floats, rows, columns)
    whole = TensorFiles().read(floats)
    assert isinstance(whole, torch.Tensor)
    row_slice = slice(None) if rows is None else slice(rows.start, rows.stop)
    column_slice = slice(None) if columns is None else slice(columns.start, columns.stop)
    assert torch.equal(part, whole[row_slice, column_slice])
    assert files.bytes_read == part.nbytes
    files.close()


@pytest.mark.parametrize("columns", [None, range(32, 96), range(32, 128)])
def test_whole_blocks_stay_blocks(blocks: TensorRecord, columns: range | None) -> None:
    files = SlicedFiles()
    part = files.read(blocks, range(2, 6), columns)
    assert isinstance(part, QuantizedWeight)
    assert part.format == "q4_0"
    values = dequantize(part.blocks.numpy(), GGMLQuantizationType.Q4_0)
    assert np.array_equal(values, all_values(blocks)[2:6, slice(None) if columns is None else as_slice(columns)])
    assert files.bytes_read == part.blocks.nbytes


@pytest.mark.parametrize("columns", [range(16, 48), range(40, 128), range(31)])
def test_cut_blocks_are_dequantized(blocks: TensorRecord, columns: range) -> None:
    part = SlicedFiles().read(blocks, range(2, 6), columns)
    assert isinstance(part, torch.Tensor)
    assert np.array_equal(part.numpy(), all_values(blocks)[2:6, as_slice(columns)])


def test_a_file_that_ends_early_is_refused(blocks: TensorRecord) -> None:
    blocks.file.write_bytes(blocks.file.read_bytes()[:100])
    with pytest.raises(StartupError, match="ends inside tensor w"):
        SlicedFiles().read(blocks)


def all_values(record: TensorRecord) -> np.ndarray:
    data = np.frombuffer(record.file.read_bytes()[record.offset :], np.uint8).reshape(ROWS, -1)
    return dequantize(data, GGMLQuantizationType.Q4_0)


def as_slice(columns: range) -> slice:
    assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType.Q4_0][0] == 32
    return slice(columns.start, columns.stop)
