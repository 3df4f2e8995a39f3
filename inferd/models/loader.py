"""Checkpoint -> ModelWeights: bytes are mapped, re-ordered, fused and prepared for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from inferd_kernels.ops import Ops, Rope
from inferd_kernels.reference import dequantize
from inferd_kernels.weights import Weight

from inferd.blocks.linear import Linear
from inferd.blocks.norm import Norm
from inferd.blocks.parameters import Parameter
from inferd.blocks.rope import RopeSpec, build_rope
from inferd.checkpoint import Checkpoint
from inferd.config import Quantization
from inferd.errors import StartupError
from inferd.models.extract_reader import ExtractReader
from inferd.models.matrix_loader import MatrixLoader
from inferd.models.model import ModelWeights
from inferd.models.names import Names
from inferd.models.registry import names_of
from inferd.models.shard import ModelShard, whole_model
from inferd.models.spec import ModelSpec
from inferd.models.stored import Extract, extract
from inferd.parallel.context import TensorGroup


@dataclass(slots=True)
class Loader:
    """Builds the weights of one rank: all of the model, or its `shard`. notify gets the fraction that is placed."""

    checkpoint: Checkpoint
    spec: ModelSpec
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    notify: Callable[[float], None]
    shard: ModelShard | None = None  # None: all
    group: TensorGroup = field(default_factory=TensorGroup)
    quantization: Quantization | None = None  # of float matrices; the embedding and the head get 8 bits at least
    _names: Names = field(init=False)
    _reader: ExtractReader = field(init=False)
    _matrices: MatrixLoader = field(init=False)
    _ropes: dict[RopeSpec, Rope] = field(default_factory=dict)
    _max_positions: int = 0
    _bytes_held: int = 0

    def __post_init__(self) -> None:
        part, spec = self._part, self.spec
        self._names = names_of(self.checkpoint)
        count = sum(max(each.experts, 1) for index in part.layers for each in spec.layer_parameters(index, part.share))
        count += len(list(spec.first_parameters(part.share))) + len(list(spec.last_parameters(part.share)))
        self._reader = ExtractReader(self.shard is None, count, self.notify)
        self._matrices = MatrixLoader(self._reader, self.ops, self.dtype, self.device, self.quantization)

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def load(self, max_positions: int) -> ModelWeights:
        """Weights of this rank, rotary tables of max_positions.

        Raises StartupError for a type that cannot be dequantized, and for norms, biases or a float embedding that are
        not finite (matrices are not scanned: their rows fail when they are used).
        """
        self._max_positions = max_positions
        spec, part = self.spec, self._part
        layers = tuple(
            spec.layers[index].load(self._layer_source(index), spec.hidden_size, part.share) for index in part.layers
        )
        first, last = self._source(spec.first_parameters(part.share)), self._source(spec.last_parameters(part.share))
        embedding, head = self._ends(first, last)
        weights = ModelWeights(
            embedding=embedding,
            positions=first.table("positions.weight") if part.is_first else None,
            token_types=first.table("token_types.weight") if part.is_first else None,
            embedding_norm=self._norm(first, "embedding_norm") if part.is_first else None,
            layers=layers,
            norm=self._norm(last, "norm") if part.is_last else None,
            head=head,
            pooler=last.linear("pooler") if part.is_last and spec.classifier else None,
            classifier=last.linear("classifier") if part.is_last and spec.classifier else None,
            num_bytes=self._bytes_held,
            first_token=part.share.vocabulary(spec.vocab_size).start,
        )
        self.notify(1.0)
        self._reader.close()
        return weights

    @property
    def _part(self) -> ModelShard:
        return self.shard or whole_model(self.spec)

    def _ends(self, first: ParameterSource, last: ParameterSource) -> tuple[Weight | None, Linear | None]:
        """(embedding, head) of this rank. Tied ones are one weight, which the first and the last stage both hold."""
        part, head = self._part, self.spec.head
        embedding: Weight | None = None
        if part.is_first or (part.is_last and head is not None and head.is_tied):
            embedding = first.matrix("embedding.weight")
            if isinstance(embedding, torch.Tensor):
                self.check_finite("embedding", embedding)
        linear = None
        if part.is_last and head is not None:
            matrix = embedding if head.is_tied else last.matrix("head.weight")
            assert matrix is not None
            linear = Linear((matrix,), last.vector("head.bias") if head.has_bias else None)
        return (embedding if part.is_first else None), linear

    def _norm(self, source: ParameterSource, name: str) -> Norm | None:
        spec = self.spec.norm if name == "norm" else self.spec.embedding.norm
        return None if spec is None else Norm.load(spec, name, self.spec.hidden_size, source)

    def _layer_source(self, index: int) -> Callable[[str], ParameterSource]:
        parameters = list(self.spec.layer_parameters(index, self._part.share))
        return lambda prefix: self._source(parameters, prefix, index)

    def _source(self, parameters: Iterable[Parameter], prefix: str = "", layer: int | None = None) -> ParameterSource:
        return ParameterSource(self, {each.name: each for each in parameters}, prefix, layer)

    def extract(self, parameters: dict[str, Parameter], name: str, layer: int, expert: int = 0) -> Extract:
        return extract(self.checkpoint.tensors, self._names, parameters, name, layer, expert)

    def matrix(self, parts: list[Extract], is_outer: bool) -> tuple[Weight, ...]:
        loaded = self._matrices.load(parts, is_outer)
        self._bytes_held += sum(part.nbytes for part in loaded)
        return loaded

    def joined(self, parts: list[Extract]) -> Weight:
        """One matrix of all parts."""
        weight = self._matrices.joined(parts)
        self._bytes_held += weight.nbytes
        return weight

    def floats(self, part: Extract) -> torch.Tensor:
        """A matrix, dequantized, in the model's dtype."""
        weight = self._reader.read(part)
        try:
            matrix = weight if isinstance(weight, torch.Tensor) else dequantize(weight)
        except ValueError as error:
            raise StartupError(f"{part.record.file}: tensor {part.record.name}: {error}") from None
        matrix = matrix.to(self.dtype)
        self._bytes_held += matrix.nbytes
        return matrix.to(self.device)

    def vector(self, parts: list[Extract]) -> torch.Tensor:
        """A norm weight, a (fused) bias or a table in the model's dtype."""
        read = [self._reader.read(part) for part in parts]
        floats = [part for part in read if isinstance(part, torch.Tensor)]
        if len(floats) < len(read):
            record = parts[0].record
            raise StartupError(f"{record.file}: tensor {record.name} of type {record.format} is not supported here")
        vector = torch.cat(floats).to(self.dtype)
        self.check_finite(parts[0].record.name, vector)
        self._bytes_held += vector.nbytes
        return vector.to(self.device)

    def rope(self, spec: RopeSpec) -> Rope:
        if spec not in self._ropes:
            self._ropes[spec] = build_rope(spec, self._max_positions, self.device)
        return self._ropes[spec]

    def check_finite(self, name: str, values: torch.Tensor) -> None:
        # One pass: a sum is finite unless a term is not.
        if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            raise StartupError(f"{self.checkpoint.path}: tensor {name} holds values that are not finite")


@dataclass(frozen=True, slots=True)
class ParameterSource:
    """Implements inferd.blocks.source.BlockSource: the parameters whose names begin with `prefix`."""

    loader: Loader
    parameters: dict[str, Parameter]
    prefix: str
    layer: int | None  # None: of what stands before or behind the layers

    @property
    def ops(self) -> Ops:
        return self.loader.ops

    @property
    def dtype(self) -> torch.dtype:
        return self.loader.dtype

    def linear(self, *names: str) -> Linear:
        parts = [self._extract(f"{name}.weight") for name in names]
        biases = [self._extract(f"{name}.bias") for name in names if f"{self.prefix}{name}.bias" in self.parameters]
        return Linear(self.loader.matrix(parts, self.layer is None), self.loader.vector(biases) if biases else None)

    def expert_matrix(self, expert: int, *names: str) -> Weight:
        return self.loader.joined([self._extract(f"{name}.weight", expert) for name in names])

    def biases(self, num_experts: int, *names: str) -> torch.Tensor:
        experts = range(num_experts)
        rows = [self.loader.vector([self._extract(f"{name}.bias", expert) for name in names]) for expert in experts]
        return torch.stack(rows).float()

    def row_parallel(self, name: str) -> Linear:
        return replace(self.linear(name), reduce=self.reduce)

    @property
    def reduce(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        group = self.loader.group
        return None if group.size == 1 else group.all_reduce

    def part(self, prefix: str) -> ParameterSource:
        return replace(self, prefix=self.prefix + prefix)

    def matrix(self, name: str) -> Weight:
        (weight,) = self.loader.matrix([self._extract(name)], self.layer is None)
        return weight

    def floats(self, name: str) -> torch.Tensor:
        return self.loader.floats(self._extract(name))

    def vector(self, name: str) -> torch.Tensor:
        return self.loader.vector([self._extract(name)])

    def table(self, name: str) -> torch.Tensor | None:
        """A float table [rows, E]; None for one that the model does not have."""
        return self.vector(name) if name in self.parameters else None

    def filled(self, size: int, value: float) -> torch.Tensor:
        return torch.full((size,), value, dtype=self.loader.dtype, device=self.loader.device)

    def rope(self, spec: RopeSpec) -> Rope:
        return self.loader.rope(spec)

    def _extract(self, name: str, expert: int = 0) -> Extract:
        return self.loader.extract(self.parameters, self.prefix + name, self.layer or 0, expert)
