"""A whole encoder: packed token ids to hidden states, a first token's state to class logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops
from inferd_kernels.weights import Weight

from inferd.layers.encoder_layer import EncoderLayerWeights, LayerNorm, encoder_layer
from inferd.layers.linear import Linear
from inferd.models.encoder_spec import EncoderSpec


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Whole sequences, one after the other, without padding.

    ids, positions, types  [T] int64: token, its place in its sequence, its segment (0, or 1 in a pair's second text)
    cu_seqlens             [B+1] int32: rows of sequence i are cu_seqlens[i]:cu_seqlens[i+1]
    """

    ids: torch.Tensor
    positions: torch.Tensor
    types: torch.Tensor
    cu_seqlens: torch.Tensor


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    words: Weight  # [V, E]
    positions: torch.Tensor  # [context, E]
    types: torch.Tensor  # [token types, E]
    norm: LayerNorm
    layers: tuple[EncoderLayerWeights, ...]
    pooler: Linear | None
    classifier: Linear | None
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Encoder:
    """dtype is that of the hidden states."""

    spec: EncoderSpec
    weights: EncoderWeights
    ops: Ops
    dtype: torch.dtype

    def forward(self, batch: PackedBatch) -> torch.Tensor:
        """Hidden states [T, E] of the last layer."""
        weights, ops = self.weights, self.ops
        words = ops.embedding(batch.ids, weights.words, self.dtype)
        places = weights.positions[batch.positions] + weights.types[batch.types]
        stream = weights.norm(ops, words, places)
        for layer in weights.layers:
            stream = encoder_layer(ops, layer, stream, batch.cu_seqlens)
        return stream

    def class_logits(self, first: torch.Tensor) -> torch.Tensor:
        """States [B, E] of the first tokens -> [B, num_labels]. Only for a spec with labels."""
        pooler, classifier = self.weights.pooler, self.weights.classifier
        assert pooler is not None
        assert classifier is not None
        return classifier(self.ops, pooler(self.ops, first).tanh())
