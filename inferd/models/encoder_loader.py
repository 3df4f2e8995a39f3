"""Checkpoint -> EncoderWeights. Encoders are float checkpoints: each tensor is cast, fused and placed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from inferd_kernels.ops import AttentionShape, Ops
from inferd_kernels.weights import Weight

from inferd.checkpoint import Checkpoint
from inferd.errors import StartupError
from inferd.layers.encoder_layer import EncoderLayerWeights, LayerNorm
from inferd.layers.linear import Linear
from inferd.models.encoder import EncoderWeights
from inferd.models.encoder_spec import EncoderSpec
from inferd.models.registry import find_tensor, weight_rules
from inferd.models.tensor_files import TensorFiles
from inferd.models.weights import Rule


@dataclass(slots=True)
class EncoderLoader:
    """Builds the weights of one encoder. notify gets the fraction of the checkpoint's bytes that are placed."""

    checkpoint: Checkpoint
    spec: EncoderSpec
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    notify: Callable[[float], None]
    _files: TensorFiles = field(default_factory=TensorFiles)
    _rules: dict[str, list[Rule]] = field(default_factory=dict)
    _bytes_read: int = 0
    _bytes_held: int = 0

    def __post_init__(self) -> None:
        for rule in weight_rules(self.spec):
            self._rules.setdefault(rule.target, []).append(rule)

    def load(self) -> EncoderWeights:
        """Raises StartupError for a tensor that is no float matrix, or holds values that are not finite."""
        weights = EncoderWeights(
            words=self._prepare(self._tensor("words")),
            positions=self._tensor("positions"),
            types=self._tensor("types"),
            norm=self._norm("embedding_norm"),
            layers=tuple(self._layer(index) for index in range(self.spec.num_layers)),
            pooler=self._linear("pooler") if self.spec.num_labels else None,
            classifier=self._linear("classifier") if self.spec.num_labels else None,
            num_bytes=self._bytes_held,
        )
        self.notify(1.0)
        return weights

    def _layer(self, index: int) -> EncoderLayerWeights:
        spec = self.spec
        shape = AttentionShape(spec.num_heads, spec.num_heads, spec.head_dim, spec.head_dim**-0.5)
        return EncoderLayerWeights(
            qkv=self._linear("qkv", index),
            o=self._linear("o", index),
            attention_norm=self._norm("attention_norm", index),
            up=self._linear("up", index),
            down=self._linear("down", index),
            mlp_norm=self._norm("mlp_norm", index),
            shape=shape,
            activation=spec.activation,
        )

    def _linear(self, target: str, layer: int = 0) -> Linear:
        return Linear((self._prepare(self._tensor(target, layer)),), self._tensor(f"{target}_bias", layer))

    def _norm(self, target: str, layer: int = 0) -> LayerNorm:
        return LayerNorm(self._tensor(target, layer), self._tensor(f"{target}_bias", layer), self.spec.norm_eps)

    def _prepare(self, weight: torch.Tensor) -> Weight:
        return self.ops.prepare_weight(weight, self.dtype)

    def _tensor(self, target: str, layer: int = 0) -> torch.Tensor:
        """The parts of a target, fused along their rows, in the model's dtype."""
        parts = []
        for rule in self._rules[target]:
            record = find_tensor(self.checkpoint.tensors, rule.source.format(layer=layer))
            part = self._files.read(record)
            if not isinstance(part, torch.Tensor):
                raise StartupError(f"{record.file}: tensor {record.name} of type {record.format} is not supported here")
            if not bool(torch.isfinite(part).all()):
                raise StartupError(f"{record.file}: tensor {record.name} holds values that are not finite")
            parts.append(part.to(self.dtype))
            self._bytes_read += record.nbytes
        self.notify(self._bytes_read / max(sum(each.nbytes for each in self.checkpoint.tensors.values()), 1))
        whole = torch.cat(parts)
        self._bytes_held += whole.nbytes
        return whole.to(self.device)
