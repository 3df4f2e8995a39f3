"""Safetensors headers. Format: 8-byte little-endian header length, JSON header, tensor bytes."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from inferd.checkpoint.extents import Extent, check_extents
from inferd.checkpoint.json_file import parse_json_object, read_json_object
from inferd.checkpoint.pointer import POINTER, refuse_pointer
from inferd.checkpoint.records import TensorRecord
from inferd.errors import StartupError

MAX_HEADER_BYTES = 100_000_000  # the bound of the reference implementation
INDEX_NAME = "model.safetensors.index.json"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


def read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, offset of the data, bytes of data). StartupError when the file cannot hold such a header."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise StartupError(f"{path}: {size} bytes are no safetensors file")
            refuse_pointer(path, prefix + file.read(len(POINTER) - 8))
            file.seek(8)
            (length,) = struct.unpack("<Q", prefix)
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise StartupError(f"{path}: header of {length} bytes in a file of {size}: truncated or corrupt")
            header = file.read(length)
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_json_object(header, f"{path}: header"), 8 + length, size - 8 - length


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def parse_entry(path: Path, name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry, checked against each other."""
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise StartupError(f"{where}: header entry is no object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in BITS:
        raise StartupError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(map(is_size, shape)):
        raise StartupError(f"{where}: malformed shape")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise StartupError(f"{where}: malformed data_offsets")
    begin, end = offsets
    expected = (math.prod(shape) * BITS[dtype] + 7) // 8
    if end - begin != expected:
        raise StartupError(f"{where}: {dtype} {shape} takes {expected} bytes, the header gives it {end - begin}")
    return dtype, tuple(shape), begin, end


def read_tensors(path: Path) -> dict[str, TensorRecord]:
    """Every tensor of one file. StartupError for a header that does not describe the file exactly."""
    header, base, data_size = read_header(path)
    header.pop("__metadata__", None)
    records, extents = {}, []
    for name, entry in header.items():
        dtype, shape, begin, end = parse_entry(path, name, entry)
        extents.append(Extent(begin, end, name))
        records[name] = TensorRecord(name, dtype.lower(), shape, path, base + begin, end - begin)
    check_extents(extents, data_size, str(path))
    covered = sum(extent.end - extent.begin for extent in extents)
    if covered != data_size:
        raise StartupError(f"{path}: {data_size} bytes of data, the header describes {covered}")
    return records


def read_sharded_tensors(folder: Path) -> dict[str, TensorRecord]:
    """The tensors that model.safetensors.index.json names, each in the shard it names."""
    index = folder / INDEX_NAME
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StartupError(f"{index}: weight_map is missing or empty")
    for shard in weight_map.values():
        # The index chooses no file outside its folder.
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
            raise StartupError(f"{index}: {str(shard)[:80]!r} is no file name")
    shards = {}
    for shard in sorted(set(weight_map.values())):
        if not (folder / shard).is_file():
            raise StartupError(f"{folder / shard}: missing, although {INDEX_NAME} names it")
        shards[shard] = read_tensors(folder / shard)
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise StartupError(f"{folder / shard}: has no tensor {name!r}, although {INDEX_NAME} says so")
    return {name: shards[shard][name] for name, shard in weight_map.items()}


def read_folder_tensors(folder: Path) -> dict[str, TensorRecord]:
    """The tensors of a checkpoint folder, sharded or not."""
    if (folder / "model.safetensors").is_file():
        return read_tensors(folder / "model.safetensors")
    if (folder / INDEX_NAME).is_file():
        return read_sharded_tensors(folder)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_tensors(files[0])
    if files:
        raise StartupError(f"{folder}: {len(files)} safetensors files, but no model.safetensors and no {INDEX_NAME}")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise StartupError(f"{folder}: only pickled weights, which are never loaded; convert them to safetensors")
    raise StartupError(f"{folder}: no .safetensors and no .gguf file")
