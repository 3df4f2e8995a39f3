"""Checkpoint -> DecoderWeights: bytes are mapped, re-ordered, fused and prepared for the kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from inferd_kernels.ops import AttentionShape, Ops, QkNorm, Rope
from inferd_kernels.quantize import quantize
from inferd_kernels.reference import quantize_rows
from inferd_kernels.weights import CheckpointWeight, Fp8Weight, QuantizedWeight, Weight

from inferd.checkpoint import Checkpoint
from inferd.config import Quantization
from inferd.errors import StartupError
from inferd.layers.decoder_layer import LayerWeights
from inferd.layers.linear import Linear
from inferd.models.decoder import DecoderWeights
from inferd.models.registry import find_tensor, weight_rules
from inferd.models.rope import build_rope
from inferd.models.shard import ModelShard, whole_model
from inferd.models.spec import DecoderSpec
from inferd.models.tensor_files import SlicedFiles, TensorFiles, WeightReader
from inferd.models.weights import Rule
from inferd.parallel.context import TensorGroup


@dataclass(slots=True)
class Loader:
    """Builds the weights of one rank: all of the model, or its `shard`. notify gets the fraction that is placed.

    The whole model is mapped, so that what needs no conversion is not copied; a shard is read, byte by byte its own.
    """

    checkpoint: Checkpoint
    spec: DecoderSpec
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    notify: Callable[[float], None]
    shard: ModelShard | None = None  # None: all
    group: TensorGroup = field(default_factory=TensorGroup)
    quantization: Quantization | None = None  # of float matrices; the embedding and the head get 8 bits at least
    _files: WeightReader = field(default_factory=TensorFiles)
    _parts_read: int = 0
    _bytes_held: int = 0

    @property
    def bytes_read(self) -> int:
        return self._files.bytes_read

    def load(self, max_positions: int) -> DecoderWeights:
        """Weights of this rank, rotary tables of max_positions.

        Raises StartupError for a type that cannot be dequantized, and for norms, biases or a float embedding that are
        not finite (matrices are not scanned: their rows fail when they are used).
        """
        shard = self._part
        files = SlicedFiles() if self.shard is not None else None
        self._files = files or self._files
        rope = None if self.spec.rope is None else build_rope(self.spec.rope, max_positions, self.device)
        rules = _by_target(weight_rules(self.spec))
        layers = tuple(self._layer(rules, index, rope) for index in shard.layers)
        embedding, lm_head = self._ends(rules)
        first_rules, last_rules = (rules if held else {} for held in (shard.has_embedding, shard.has_head))
        weights = DecoderWeights(
            embedding=embedding,
            positions=self._vector(first_rules, "positions", 0),
            layers=layers,
            norm=self._vector(last_rules, "norm", 0),
            norm_bias=self._vector(last_rules, "norm_bias", 0),
            lm_head=None if lm_head is None else Linear((lm_head,)),
            num_bytes=self._bytes_held,
            first_token=shard.vocab.start,
        )
        self.notify(1.0)
        if files is not None:
            files.close()
        return weights

    @property
    def _part(self) -> ModelShard:
        return self.shard or whole_model(self.spec)

    def _ends(self, rules: dict[str, list[Rule]]) -> tuple[Weight | None, Weight | None]:
        """(embedding, head) of this rank. Tied ones are one weight, which the first and the last stage both hold."""
        shard = self._part
        embedding = lm_head = None
        if shard.has_embedding or (shard.has_head and self.spec.tied_embeddings):
            embedding = self._matrix(rules["embedding"], 0)[0]
            if isinstance(embedding, torch.Tensor):
                self._check_finite(rules["embedding"][0].source, embedding)
        if shard.has_head:
            lm_head = embedding if self.spec.tied_embeddings else self._matrix(rules["lm_head"], 0)[0]
        return (embedding if shard.has_embedding else None), lm_head

    def _layer(self, rules: dict[str, list[Rule]], index: int, rope: Rope | None) -> LayerWeights:
        spec, shard = self.spec, self._part
        attention_norm, mlp_norm = (self._vector(rules, name, index) for name in ("attention_norm", "mlp_norm"))
        q_norm, k_norm = (self._vector(rules, name, index) for name in ("q_norm", "k_norm"))
        assert attention_norm is not None
        assert mlp_norm is not None
        return LayerWeights(
            attention_norm=attention_norm,
            qkv=self._linear(rules, "qkv", index),
            qk_norm=None if q_norm is None or k_norm is None else QkNorm(q_norm, k_norm, spec.norm_eps),
            o=self._row_parallel(rules, "o", index),
            mlp_norm=mlp_norm,
            gate_up=self._linear(rules, "gate_up", index),
            down=self._row_parallel(rules, "down", index),
            shape=AttentionShape(
                num_heads=len(shard.q_heads),
                num_kv_heads=len(shard.kv_heads),
                head_dim=spec.head_dim,
                scale=spec.head_dim**-0.5,
                window=spec.windows[index],
            ),
            rope=rope,
            norm_eps=spec.norm_eps,
            attention_norm_bias=self._vector(rules, "attention_norm_bias", index),
            mlp_norm_bias=self._vector(rules, "mlp_norm_bias", index),
            activation=spec.activation,
        )

    def _linear(self, rules: dict[str, list[Rule]], target: str, layer: int) -> Linear:
        return Linear(self._matrix(rules[target], layer), self._vector(rules, f"{target}_bias", layer))

    def _row_parallel(self, rules: dict[str, list[Rule]], target: str, layer: int) -> Linear:
        """A linear layer over this rank's input columns: the ranks' outputs are summed."""
        linear = self._linear(rules, target, layer)
        return linear if self.group.size == 1 else replace(linear, reduce=self.group.all_reduce)

    def _matrix(self, rules: list[Rule], layer: int) -> tuple[Weight, ...]:
        """The prepared parts of one matrix: fused to one where formats allow it, before preparation if possible."""
        raw = [self._read(rule, layer) for rule in rules]
        fused = _concatenate(raw)
        prepared = [self._prepare(rules[0], part) for part in (raw if fused is None else [fused])]
        fused = _concatenate(prepared)
        result = (fused,) if fused is not None else tuple(prepared)
        self._bytes_held += sum(part.nbytes for part in result)
        return result

    def _prepare(self, rule: Rule, weight: Weight) -> Weight:
        """In the form of the kernels: quantized blocks stay blocks where the backend computes on them."""
        if isinstance(weight, torch.Tensor):
            weight = weight.to(self.dtype)
        try:
            if self.quantization is not None and isinstance(weight, torch.Tensor):
                weight = _quantized(weight, self.quantization, rule.per_layer)
            prepared = self.ops.prepare_weight(weight, self.dtype)
        except ValueError as error:
            raise StartupError(f"{self.checkpoint.path}: tensor {rule.source}: {error}") from None
        return prepared if isinstance(prepared, QuantizedWeight) else prepared.to(self.device)

    def _vector(self, rules: dict[str, list[Rule]], target: str, layer: int) -> torch.Tensor | None:
        """A norm weight, a (fused) bias or the position table in the model's dtype; None for what is not there."""
        if target not in rules:
            return None
        parts = [self._read(rule, layer) for rule in rules[target]]
        vector = torch.cat([part for part in parts if isinstance(part, torch.Tensor)]).to(self.dtype)
        self._check_finite(rules[target][0].source.format(layer=layer), vector)
        self._bytes_held += vector.nbytes
        return vector.to(self.device)

    def _read(self, rule: Rule, layer: int) -> CheckpointWeight:
        record = find_tensor(self.checkpoint.tensors, rule.source.format(layer=layer))
        rows, columns = rule_slices(rule, self._part, self.spec)
        if self.shard is None and rule.num_parts == 1:
            rows, columns = None, None
        weight = self._files.read(record, *((columns, rows) if rule.transposed else (rows, columns)))
        self._parts_read += 1
        self.notify(min(self._parts_read / self._num_parts(), 1.0))
        if record.rope_interleaved:
            num_rows = record.shape[0] if rows is None else len(rows)
            order = half_split_order(num_rows, self.spec.head_dim)
            return weight.rows(order) if isinstance(weight, QuantizedWeight) else weight[order]
        if rule.transposed:
            if isinstance(weight, QuantizedWeight):
                raise StartupError(f"{record.file}: tensor {record.name} is stored transposed and quantized")
            return weight.t().contiguous()
        return weight

    def _num_parts(self) -> int:
        per_layer = [rule.per_layer for rule in weight_rules(self.spec)]
        return max(sum(len(self._part.layers) if each else 1 for each in per_layer), 1)

    def _check_finite(self, name: str, values: torch.Tensor) -> None:
        # One pass: a sum is finite unless a term is not.
        if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            raise StartupError(f"{self.checkpoint.path}: tensor {name} holds values that are not finite")


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


def _quantized(weight: torch.Tensor, kind: Quantization, per_layer: bool) -> Weight:
    """fp8: e4m3 values with a scale per row; q4, q8: ggml's groups of 32. Raises ValueError for values that have no
    such form."""
    if kind != "fp8":
        return quantize(weight, 4 if kind == "q4" and per_layer else 8).weight
    if not bool(torch.isfinite(weight.sum(dtype=torch.float32))):
        raise ValueError("the matrix holds values that are not finite")
    return Fp8Weight(*quantize_rows(weight, torch.float8_e4m3fn))


def _by_target(rules: tuple[Rule, ...]) -> dict[str, list[Rule]]:
    grouped: dict[str, list[Rule]] = {}
    for rule in rules:
        grouped.setdefault(rule.target, []).append(rule)
    return grouped


def _concatenate(parts: Sequence[Weight]) -> Weight | None:
    """The parts as one weight over their rows; None when their formats differ."""
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == len(parts):
        return torch.cat(tensors) if len({part.dtype for part in tensors}) == 1 else None
    quantized = [part for part in parts if isinstance(part, QuantizedWeight)]
    if len(quantized) < len(parts) or len({part.format for part in quantized}) > 1:
        return None
    shape = (sum(part.shape[0] for part in quantized), quantized[0].shape[1])
    return QuantizedWeight(torch.cat([part.blocks for part in quantized]), quantized[0].format, shape)
