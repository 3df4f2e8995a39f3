"""What one rank holds of the tensors that weight rules name: in the checkpoint's formats, in the model's row order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from inferd_kernels.weights import CheckpointWeight, QuantizedWeight

from inferd.checkpoint import Checkpoint, TensorRecord
from inferd.errors import StartupError
from inferd.models.registry import find_tensor, weight_rules
from inferd.models.shard import ModelShard, whole_model
from inferd.models.spec import DecoderSpec
from inferd.models.tensor_files import SlicedFiles, TensorFiles
from inferd.models.weights import Rule

BLOCK_BYTES = 1 << 20


class RuleReader:
    """The whole model is mapped, so that what needs no conversion is not copied; a shard is read, byte by byte its own.

    notify gets the fraction of the tensors that are read.
    """

    def __init__(
        self, checkpoint: Checkpoint, spec: DecoderSpec, shard: ModelShard | None, notify: Callable[[float], None]
    ) -> None:
        self._checkpoint = checkpoint
        self._spec = spec
        self._shard = shard or whole_model(spec)
        self._is_whole = shard is None
        self._files = TensorFiles() if shard is None else SlicedFiles()
        self._notify = notify
        per_layer = [rule.per_layer for rule in weight_rules(spec)]
        self._num_tensors = max(sum(len(self._shard.layers) if each else 1 for each in per_layer), 1)
        self._num_read = 0

    @property
    def bytes_read(self) -> int:
        return self._files.bytes_read

    @property
    def path(self) -> Path:
        return self._checkpoint.path

    def close(self) -> None:
        self._files.close()

    def format(self, rule: Rule, layer: int) -> str:
        return self._record(rule, layer).format

    def shape(self, rule: Rule) -> tuple[int, int]:
        """[out, in] of this rank's part of a matrix."""
        rows, columns = rule_slices(rule, self._shard, self._spec)
        return (rule.shape[0] if rows is None else len(rows), rule.shape[1] if columns is None else len(columns))

    def read(self, rule: Rule, layer: int) -> CheckpointWeight:
        """Raises StartupError when the file cannot be read, or not as the rule says."""
        record = self._record(rule, layer)
        rows, columns = self._slices(rule)
        weight = self._files.read(record, *((columns, rows) if rule.transposed else (rows, columns)))
        self._count()
        if not rule.transposed:
            return self._in_order(record, weight)
        if isinstance(weight, QuantizedWeight):
            raise StartupError(f"{record.file}: tensor {record.name} is stored transposed and quantized")
        return weight.t().contiguous()

    def blocks(self, rule: Rule, layer: int) -> Iterator[CheckpointWeight]:
        """A matrix like read, but some rows at a time, read when asked for; as one if it is stored transposed."""
        if rule.transposed:
            yield self.read(rule, layer)
            return
        record = self._record(rule, layer)
        rows, columns = self._slices(rule)
        rows = rows or range(record.shape[0])
        unit = self._spec.head_dim  # rows change places within a head
        count = max(BLOCK_BYTES * record.shape[0] // record.nbytes // unit, 1) * unit
        for start in range(rows.start, rows.stop, count):
            part = range(start, min(start + count, rows.stop))
            yield self._in_order(record, self._files.read(record, part, columns))
        self._count()

    def _record(self, rule: Rule, layer: int) -> TensorRecord:
        return find_tensor(self._checkpoint.tensors, rule.source.format(layer=layer))

    def _slices(self, rule: Rule) -> tuple[range | None, range | None]:
        if self._is_whole and rule.num_parts == 1:
            return None, None
        return rule_slices(rule, self._shard, self._spec)

    def _in_order(self, record: TensorRecord, weight: CheckpointWeight) -> CheckpointWeight:
        if not record.rope_interleaved:
            return weight
        order = half_split_order(weight.shape[0], self._spec.head_dim)
        return weight.rows(order) if isinstance(weight, QuantizedWeight) else weight[order]

    def _count(self) -> None:
        self._num_read += 1
        self._notify(min(self._num_read / self._num_tensors, 1.0))


def half_split_order(rows: int, head_dim: int) -> torch.Tensor:
    """Row order that turns interleaved rotary pairs (0, 1), (2, 3), .. of each head into the halves form:
    new row h * D + half * D/2 + i is old row h * D + 2 i + half."""
    return torch.arange(rows).view(-1, head_dim // 2, 2).transpose(1, 2).flatten()


def rule_slices(rule: Rule, shard: ModelShard, spec: DecoderSpec) -> tuple[range | None, range | None]:
    """(output rows, input columns) of the whole tensor that a rank holds of a part; None: all."""
    dim = spec.head_dim
    ranges = {
        "whole": None,
        "q": range(shard.q_heads.start * dim, shard.q_heads.stop * dim),
        "kv": range(shard.kv_heads.start * dim, shard.kv_heads.stop * dim),
        "inner": shard.inner,
        "vocab": shard.vocab,
    }
    name, _, axis = rule.split.partition("_")
    held = ranges[name]
    if axis == "columns":
        return None, held
    if rule.num_parts == 1:
        return held, None
    first = rule.part * rule.shape[0]
    held = held or range(rule.shape[0])
    return range(first + held.start, first + held.stop), None
