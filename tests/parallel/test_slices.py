"""Reading slices gives what cutting whole tensors gives, and reads no other byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from inferd_kernels.cpu.convert import PackedWeight
from inferd_kernels.ops import Ops, load_ops
from inferd_kernels.weights import QuantizedWeight

from inferd.checkpoint import TensorRecord, open_checkpoint
from inferd.errors import StartupError
from inferd.models import extract_reader
from inferd.models.loader import Loader
from inferd.models.model import ModelWeights
from inferd.models.registry import check_checkpoint
from inferd.models.shard import shard_model
from inferd.models.tensor_files import SlicedFiles, TensorFiles
from inferd.parallel.placement import Placement

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


@pytest.mark.parametrize("name", ["llama-odd", "llama-tied", "gpt2"])
def test_a_rank_that_reads_some_rows_at_a_time_holds_the_same(
    name: str, tiny_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that reads whole matrices; and both read each byte of their shard once."""
    ops, whole = (load_ops("cpu", "native", 1) for _ in range(2))
    assert ops.packs_blocks
    monkeypatch.setattr(whole, "packs_blocks", False)
    monkeypatch.setattr(extract_reader, "BLOCK_BYTES", 1)
    checkpoint = open_checkpoint(tiny_model(name))
    spec = check_checkpoint(checkpoint)
    shard = shard_model(spec, Placement(1, 2, 1), 1)

    def load(ops: Ops) -> tuple[ModelWeights, int]:
        loader = Loader(checkpoint, spec, ops, torch.float32, torch.device("cpu"), lambda done: None, shard)
        return loader.load(64), loader.bytes_read

    (ours, read), (expected, read_whole) = load(ops), load(whole)
    assert read == read_whole
    assert ours.num_bytes == expected.num_bytes
    assert packed_bytes(ours) == packed_bytes(expected)


def packed_bytes(weights: ModelWeights) -> list[bytes]:
    matrices = [weights.embedding, *(weights.head.parts if weights.head is not None else ())]
    for layer in weights.layers:
        matrices += [
            part
            for linear in (layer.mixer.qkv, layer.mixer.o, layer.feed_forward.up, layer.feed_forward.down)
            for part in linear.parts
        ]
    assert all(isinstance(matrix, PackedWeight) for matrix in matrices)
    return [matrix.blocks.numpy().tobytes() for matrix in matrices if isinstance(matrix, PackedWeight)]
