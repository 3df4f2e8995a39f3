"""Checkpoint -> DecoderWeights: bytes are mapped, re-ordered, fused and prepared for the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from inferd_kernels.ops import AttentionShape, Ops, QkNorm, Rope
from inferd_kernels.weights import Weight

from inferd.checkpoint import Checkpoint
from inferd.config import Quantization
from inferd.errors import StartupError
from inferd.layers.decoder_layer import LayerWeights
from inferd.layers.linear import Linear
from inferd.models.decoder import DecoderWeights
from inferd.models.matrix_loader import MatrixLoader
from inferd.models.registry import weight_rules
from inferd.models.rope import build_rope
from inferd.models.rule_reader import RuleReader
from inferd.models.shard import ModelShard, whole_model
from inferd.models.spec import DecoderSpec
from inferd.models.weights import Rule
from inferd.parallel.context import TensorGroup


@dataclass(slots=True)
class Loader:
    """Builds the weights of one rank: all of the model, or its `shard`. notify gets the fraction that is placed."""

    checkpoint: Checkpoint
    spec: DecoderSpec
    ops: Ops
    dtype: torch.dtype
    device: torch.device
    notify: Callable[[float], None]
    shard: ModelShard | None = None  # None: all
    group: TensorGroup = field(default_factory=TensorGroup)
    quantization: Quantization | None = None  # of float matrices; the embedding and the head get 8 bits at least
    _reader: RuleReader = field(init=False)
    _matrices: MatrixLoader = field(init=False)
    _bytes_held: int = 0

    def __post_init__(self) -> None:
        self._reader = RuleReader(self.checkpoint, self.spec, self.shard, self.notify)
        self._matrices = MatrixLoader(self._reader, self.ops, self.dtype, self.device, self.quantization)

    @property
    def bytes_read(self) -> int:
        return self._reader.bytes_read

    def load(self, max_positions: int) -> DecoderWeights:
        """Weights of this rank, rotary tables of max_positions.

        Raises StartupError for a type that cannot be dequantized, and for norms, biases or a float embedding that are
        not finite (matrices are not scanned: their rows fail when they are used).
        """
        shard = self._part
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
        self._reader.close()
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
        if shard.has_head and self.spec.has_head:
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
        parts = self._matrices.load(rules, layer)
        self._bytes_held += sum(part.nbytes for part in parts)
        return parts

    def _vector(self, rules: dict[str, list[Rule]], target: str, layer: int) -> torch.Tensor | None:
        """A norm weight, a (fused) bias or the position table in the model's dtype; None for what is not there."""
        if target not in rules:
            return None
        parts = [self._reader.read(rule, layer) for rule in rules[target]]
        vector = torch.cat([part for part in parts if isinstance(part, torch.Tensor)]).to(self.dtype)
        self._check_finite(rules[target][0].source.format(layer=layer), vector)
        self._bytes_held += vector.nbytes
        return vector.to(self.device)

    def _check_finite(self, name: str, values: torch.Tensor) -> None:
        # One pass: a sum is finite unless a term is not.
        if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
            raise StartupError(f"{self.checkpoint.path}: tensor {name} holds values that are not finite")


def _by_target(rules: tuple[Rule, ...]) -> dict[str, list[Rule]]:
    grouped: dict[str, list[Rule]] = {}
    for rule in rules:
        grouped.setdefault(rule.target, []).append(rule)
    return grouped
