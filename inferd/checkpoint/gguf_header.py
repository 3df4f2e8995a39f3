"""GGUF headers (v2 and v3, little endian), read over a memory map without touching the tensor data.

Layout: magic, version, tensor count, metadata count, metadata (key, type, value), tensor infos (name, dimensions, type,
offset), padding to `general.alignment`, tensor data. Every length is checked against the bytes left before it is used.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferd.checkpoint.extents import Extent, check_extents
from inferd.checkpoint.pointer import refuse_pointer
from inferd.errors import StartupError

DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 4
MAX_NAME_BYTES = 64 * 1024
MAX_ARRAY_DEPTH = 4
VOCABULARY = "tokenizer.ggml."
STRING, ARRAY, FLOAT32, BOOL = 8, 9, 6, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml type number -> (name, elements per block, bytes per block)
GGML_TYPES = {
    0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 10: ("q2_k", 256, 84), 11: ("q3_k", 256, 110), 12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176), 14: ("q6_k", 256, 210), 15: ("q8_k", 256, 292), 16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50), 20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136), 24: ("i8", 1, 1), 25: ("i16", 1, 2),
    26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8), 29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66), 39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36),
    41: ("q1_0", 128, 18),
}  # fmt: skip
# name -> (elements per block, bytes per block)
GGML_BLOCKS = {name: (elements, block_bytes) for name, elements, block_bytes in GGML_TYPES.values()}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """dimensions fastest first, as ggml counts them; offset in bytes from the start of the file."""

    name: str
    dimensions: tuple[int, ...]
    format: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    path: Path
    metadata: dict[str, Any]
    tensors: list[GgufTensor]


def read_gguf_header(path: Path, with_vocabulary: bool = True) -> GgufHeader:
    """Metadata and tensor index of one file. StartupError when the file is no GGUF or does not hold what it says.

    Without its vocabulary, which is nearly all of it, the arrays of tokenizer.ggml.* are empty."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise StartupError(f"{path}: {path.stat().st_size} bytes are no GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return HeaderReader(path, data, with_vocabulary).read()
    except OSError as error:
        raise StartupError(f"{path}: cannot be read ({error.strerror})") from None


def shortest_float32(value: float) -> float:
    """The double with the fewest digits that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    short = float(f"{value:.7g}")
    return short if struct.pack("<f", short) == struct.pack("<f", value) else value


class HeaderReader:
    """A cursor over the mapped file. Lives for one read."""

    def __init__(self, path: Path, data: mmap.mmap, with_vocabulary: bool) -> None:
        self.path = path
        self.data = data
        self.with_vocabulary = with_vocabulary
        self.size = len(data)
        self.position = 0

    def fail(self, problem: str) -> StartupError:
        return StartupError(f"{self.path}: {problem}")

    def read(self) -> GgufHeader:
        refuse_pointer(self.path, self.data[:64])
        if self.data[:4] != b"GGUF":
            raise self.fail("not a GGUF file (wrong magic)")
        self.position = 4
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise self.fail("a big-endian GGUF file; only little-endian ones are supported, convert it")
        if version not in (2, 3):
            raise self.fail(f"GGUF version {version} is not supported (2 and 3 are, little endian)")
        tensor_count, metadata_count = self.number("Q"), self.number("Q")
        # The smallest entries take 13 and 24 bytes: a count that cannot fit is refused before anything is allocated.
        if metadata_count > self.size // 13 or tensor_count > self.size // 24:
            raise self.fail(f"{metadata_count} metadata entries and {tensor_count} tensors do not fit the file")
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self.name()
            if key in metadata:
                raise self.fail(f"metadata key {key[:80]!r} appears twice")
            metadata[key] = self.value(self.number("I"), key)
        infos = [self.tensor_info() for _ in range(tensor_count)]
        return GgufHeader(self.path, metadata, self.place(infos, metadata))

    def take(self, count: int) -> int:
        """Move past `count` bytes, which must exist; returns where they begin."""
        begin = self.position
        if count > self.size - begin:
            raise self.fail(f"truncated: {count} bytes wanted at byte {begin} of {self.size}")
        self.position = begin + count
        return begin

    def number(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.data, self.take(layout.size))[0]

    def string(self) -> str:
        begin = self.take(self.number("Q"))
        return self.text(begin, self.position)

    def text(self, begin: int, end: int) -> str:
        try:
            return self.data[begin:end].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"string at byte {begin} is not UTF-8") from None

    def name(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.take(8))
        if not 1 <= length <= MAX_NAME_BYTES:
            raise self.fail(f"name of {length} bytes at byte {self.position}: corrupt")
        begin = self.take(length)
        return self.text(begin, self.position)

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(key, depth)
        if kind not in SCALARS:
            raise self.fail(f"metadata {key[:80]!r} has unknown type {kind}")
        value = self.number(SCALARS[kind])
        return shortest_float32(value) if kind == FLOAT32 else value

    def array(self, key: str, depth: int) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        keep = self.with_vocabulary or not key.startswith(VOCABULARY)
        if kind == STRING:
            return self.string_array(key, count, keep)
        if kind == ARRAY:
            if depth >= MAX_ARRAY_DEPTH or count > (self.size - self.position) // 12:
                raise self.fail(f"metadata {key[:80]!r}: malformed nested array")
            return [self.array(key, depth + 1) for _ in range(count)]
        if kind not in SCALARS:
            raise self.fail(f"metadata {key[:80]!r} is an array of unknown type {kind}")
        width = struct.calcsize("<" + SCALARS[kind])
        begin = self.take(count * width)
        return list(struct.unpack_from(f"<{count}{SCALARS[kind]}", self.data, begin)) if keep else []

    def string_array(self, key: str, count: int, keep: bool) -> list[str]:
        """Strings one after another, each behind its length. The one hot loop here: vocabularies hold 10^5 of them."""
        if count > (self.size - self.position) // 8:
            raise self.fail(f"metadata {key[:80]!r}: {count} strings do not fit the file")
        data, position, size = self.data, self.position, self.size
        unpack: Callable[[Any, int], tuple[int]] = struct.Struct("<Q").unpack_from
        strings = []
        try:
            for _ in range(count):
                begin = position + 8
                position = begin + unpack(data, position)[0]
                if position > size:
                    raise self.fail(f"truncated inside metadata {key[:80]!r}")
                if keep:
                    strings.append(data[begin:position].decode("utf-8"))
        except struct.error:
            raise self.fail(f"truncated inside metadata {key[:80]!r}") from None
        except UnicodeDecodeError:
            raise self.fail(f"metadata {key[:80]!r}: string {len(strings)} is not UTF-8") from None
        self.position = position
        return strings

    def tensor_info(self) -> GgufTensor:
        """One entry of the index; the offset is still relative to the data section."""
        name = self.name()
        rank = self.number("I")
        if not 1 <= rank <= MAX_DIMENSIONS:
            raise self.fail(f"tensor {name[:80]!r} has {rank} dimensions, 1 to {MAX_DIMENSIONS} are possible")
        dimensions = tuple(self.number("Q") for _ in range(rank))
        kind, offset = self.number("I"), self.number("Q")
        if kind not in GGML_TYPES:
            raise self.fail(f"tensor {name[:80]!r} has unknown type {kind}")
        type_name, block, block_bytes = GGML_TYPES[kind]
        elements = 1
        for dimension in dimensions:
            elements *= dimension
        if elements == 0 or dimensions[0] % block:
            raise self.fail(f"tensor {name[:80]!r}: shape {list(dimensions)} is no whole number of {type_name} blocks")
        return GgufTensor(name, dimensions, type_name, offset, elements // block * block_bytes)

    def place(self, infos: list[GgufTensor], metadata: dict[str, Any]) -> list[GgufTensor]:
        """Offsets from the start of the file, checked: aligned, inside the file, not overlapping, names unique."""
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment > 2**20 or alignment & (alignment - 1):
            raise self.fail(f"general.alignment is {str(alignment)[:40]}, a power of two is expected")
        if len({info.name for info in infos}) != len(infos):
            raise self.fail("a tensor name appears twice")
        base = -(-self.position // alignment) * alignment
        for info in infos:
            if info.offset % alignment:
                raise self.fail(f"tensor {info.name[:80]!r} is at {info.offset}, not a multiple of {alignment}")
        check_extents(
            (Extent(info.offset, info.offset + info.nbytes, info.name) for info in infos),
            self.size - base,
            str(self.path),
        )
        return [GgufTensor(i.name, i.dimensions, i.format, base + i.offset, i.nbytes) for i in infos]
