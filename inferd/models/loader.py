"""Checkpoint -> DecoderWeights: bytes are mapped, re-ordered, fused and prepared for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from inferd_kernels.ops import AttentionShape, Ops, QkNorm, Rope
from inferd_kernels.weights import QuantizedWeight, Weight

from inferd.checkpoint import Checkpoint, TensorRecord
from inferd.errors import StartupError
from inferd.layers.decoder_layer import LayerWeights
from inferd.layers.linear import Linear
from inferd.models.decoder import DecoderWeights
from inferd.models.registry import weight_rules
from inferd.models.rope import build_rope
from inferd.models.spec import DecoderSpec
from inferd.models.weights import Rule

FLOAT_FORMATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TensorFiles:
    """Maps checkpoint files, each once, and cuts tensors out of them without copying.

    The mapping is private: writes do not reach the file. It lives as long as a tensor cut out of it.
    """

    def __init__(self) -> None:
        self._maps: dict[Path, torch.Tensor] = {}

    def read(self, record: TensorRecord) -> Weight:
        """A float tensor in the checkpoint's own dtype, or [N, K] quantized blocks."""
        raw = self._map(record.file)[record.offset : record.offset + record.nbytes]
        dtype = FLOAT_FORMATS.get(record.format)
        if dtype is None:
            if len(record.shape) != 2:
                raise StartupError(f"{record.file}: tensor {record.name} of type {record.format} is no matrix")
            rows, columns = record.shape
            return QuantizedWeight(raw.view(rows, -1), record.format, (rows, columns))
        if record.offset % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(record.shape)

    def _map(self, path: Path) -> torch.Tensor:
        if path not in self._maps:
            try:
                size = path.stat().st_size
                self._maps[path] = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise StartupError(f"{path}: cannot be mapped ({error})") from None
        return self._maps[path]


@dataclass(slots=True)
class Loader:
    """Builds the weights of one model. notify gets the fraction of the checkpoint's bytes that are placed."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    notify: Callable[[float], None]
    _files: TensorFiles = field(default_factory=TensorFiles)
    _bytes_total: int = field(init=False)
    _bytes_read: int = 0
    _bytes_held: int = 0

    def __post_init__(self) -> None:
        self._bytes_total = max(sum(record.nbytes for record in self.checkpoint.tensors.values()), 1)

    def load(self, max_positions: int) -> DecoderWeights:
        """Weights of the whole model, rotary tables of max_positions.

        Raises StartupError for a type that cannot be dequantized, and for norms, biases or a float embedding that are
        not finite (matrices are not scanned: their rows fail when they are used).
        """
        rope = build_rope(self.spec.rope, max_positions, self.device)
        rules = _by_target(weight_rules(self.spec))
        layers = tuple(self._layer(rules, index, rope) for index in range(self.spec.num_layers))
        embedding = self._matrix(rules["embedding"], 0)[0]
        if isinstance(embedding, torch.Tensor):
            self._check_finite(rules["embedding"][0].source, embedding)
        lm_head = embedding if self.spec.tied_embeddings else self._matrix(rules["lm_head"], 0)[0]
        norm = self._vector(rules, "norm", 0)
        assert norm is not None
        self.notify(1.0)
        return DecoderWeights(embedding, layers, norm, Linear((lm_head,)), self._bytes_held)

    def _layer(self, rules: dict[str, list[Rule]], index: int, rope: Rope) -> LayerWeights:
        spec = self.spec
        attention_norm, mlp_norm = (self._vector(rules, name, index) for name in ("attention_norm", "mlp_norm"))
        q_norm, k_norm = (self._vector(rules, name, index) for name in ("q_norm", "k_norm"))
        assert attention_norm is not None
        assert mlp_norm is not None
        return LayerWeights(
            attention_norm=attention_norm,
            qkv=self._linear(rules, "qkv", index),
            qk_norm=None if q_norm is None or k_norm is None else QkNorm(q_norm, k_norm, spec.norm_eps),
            o=self._linear(rules, "o", index),
            mlp_norm=mlp_norm,
            gate_up=self._linear(rules, "gate_up", index),
            down=self._linear(rules, "down", index),
            shape=AttentionShape(
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                head_dim=spec.head_dim,
                scale=spec.head_dim**-0.5,
                window=spec.windows[index],
            ),
            rope=rope,
            norm_eps=spec.norm_eps,
        )

    def _linear(self, rules: dict[str, list[Rule]], target: str, layer: int) -> Linear:
        return Linear(self._matrix(rules[target], layer), self._vector(rules, f"{target}_bias", layer))

    def _matrix(self, rules: list[Rule], layer: int) -> tuple[Weight, ...]:
        """The prepared parts of one matrix: fused to one where formats allow it, before preparation if possible."""
        raw = [self._read(rule, layer) for rule in rules]
        fused = _concatenate(raw)
        prepared = [self._prepare(rules[0], part) for part in (raw if fused is None else [fused])]
        fused = _concatenate(prepared)
        result = (fused,) if fused is not None else tuple(prepared)
        self._bytes_held += sum(_num_bytes(part) for part in result)
        return result

    def _prepare(self, rule: Rule, weight: Weight) -> Weight:
        """In the form of the kernels: quantized blocks stay blocks where the backend computes on them."""
        if isinstance(weight, torch.Tensor):
            weight = weight.to(self.dtype)
        try:
            prepared = self.ops.prepare_weight(weight, self.dtype)
        except ValueError as error:
            raise StartupError(f"{self.checkpoint.path}: tensor {rule.source}: {error}") from None
        return prepared.to(self.device) if isinstance(prepared, torch.Tensor) else prepared

    def _vector(self, rules: dict[str, list[Rule]], target: str, layer: int) -> torch.Tensor | None:
        """A norm weight or a (fused) bias in the model's dtype; None for what the model does not have."""
        if target not in rules:
            return None
        parts = [self._read(rule, layer) for rule in rules[target]]
        vector = torch.cat([part for part in parts if isinstance(part, torch.Tensor)]).to(self.dtype)
        self._check_finite(rules[target][0].source.format(layer=layer), vector)
        self._bytes_held += _num_bytes(vector)
        return vector.to(self.device)

    def _read(self, rule: Rule, layer: int) -> Weight:
        record = self.checkpoint.tensors[rule.source.format(layer=layer)]
        weight = self._files.read(record)
        self._bytes_read += record.nbytes
        self.notify(self._bytes_read / self._bytes_total)
        if record.rope_interleaved:
            order = half_split_order(record.shape[0], self.spec.head_dim)
            weight = weight.rows(order) if isinstance(weight, QuantizedWeight) else weight[order]
        return weight

    def _check_finite(self, name: str, values: torch.Tensor) -> None:
        # One pass: a sum is finite unless a term is not.
        if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            raise StartupError(f"{self.checkpoint.path}: tensor {name} holds values that are not finite")


def half_split_order(rows: int, head_dim: int) -> torch.Tensor:
    """Row order that turns interleaved rotary pairs (0, 1), (2, 3), .. of each head into the halves form:
    new row h * D + half * D/2 + i is old row h * D + 2 i + half."""
    return torch.arange(rows).view(-1, head_dim // 2, 2).transpose(1, 2).flatten()


def _by_target(rules: tuple[Rule, ...]) -> dict[str, list[Rule]]:
    grouped: dict[str, list[Rule]] = {}
    for rule in rules:
        grouped.setdefault(rule.target, []).append(rule)
    return grouped


def _concatenate(parts: list[Weight]) -> Weight | None:
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


def _num_bytes(weight: Weight) -> int:
    return weight.nbytes if isinstance(weight, torch.Tensor) else weight.blocks.nbytes
