"""A whole decoder: token ids of a step to the residual stream, rows of it to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops, PagedBatch
from inferd_kernels.weights import Weight

from inferd.layers.decoder_layer import KVCache, LayerWeights, layer_stack
from inferd.layers.linear import Linear
from inferd.models.spec import DecoderSpec


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """embedding and lm_head are one prepared weight where the model ties them."""

    embedding: Weight  # [V, E]
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor  # [E]
    lm_head: Linear
    num_bytes: int


class Decoder:
    """The parts of a forward pass. caches[i] is the KV memory of layer i; dtype that of the residual stream."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        caches: tuple[KVCache, ...],
        ops: Ops,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.caches = caches
        self.ops = ops
        self.dtype = dtype
        self._stack = layer_stack(ops, weights.layers, caches)

    def forward(self, ids: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """ids [T] int64 -> residual stream [T, E]; writes this step's keys and values into caches."""
        stream = self.ops.embedding(ids, self.weights.embedding, self.dtype)
        return self._stack(stream, batch)

    def copy_blocks(self, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """KV blocks `sources` to `destinations` [N], in every layer."""
        for cache in self.caches:
            self.ops.copy_blocks(cache.k, sources, destinations)
            self.ops.copy_blocks(cache.v, sources, destinations)

    def hidden(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> the last hidden states [S, E], which embeddings are pooled from."""
        return self.ops.rms_norm(stream, self.weights.norm, self.spec.norm_eps)

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> [S, V]."""
        return self.weights.lm_head(self.ops, self.hidden(stream))
