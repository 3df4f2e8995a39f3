"""What one rank computes of a decoder: token ids of a step to the residual stream, its layers, rows of it to logits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops, PagedBatch
from inferd_kernels.weights import Weight

from inferd.layers.decoder_layer import KVCache, LayerWeights, layer_norm, layer_stack
from inferd.layers.linear import Linear
from inferd.models.spec import DecoderSpec
from inferd.parallel.context import TensorGroup


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """embedding and lm_head are one prepared weight where the model ties them.

    The first pipeline stage has embedding and positions, the last norm and, where the model has one, lm_head. V is this
    rank's part of the vocabulary, which begins with first_token.
    """

    embedding: Weight | None  # [V, E]
    positions: torch.Tensor | None  # [positions, E]; None also where positions are rotary
    layers: tuple[LayerWeights, ...]
    norm: torch.Tensor | None  # [E]
    norm_bias: torch.Tensor | None  # [E] of a LayerNorm
    lm_head: Linear | None
    num_bytes: int
    first_token: int = 0


class Decoder:
    """The parts of a forward pass. caches[i] is the KV memory of layer i; dtype that of the residual stream."""

    def __init__(
        self,
        spec: DecoderSpec,
        weights: DecoderWeights,
        caches: tuple[KVCache, ...],
        ops: Ops,
        dtype: torch.dtype,
        group: TensorGroup | None = None,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.caches = caches
        self.ops = ops
        self.dtype = dtype
        self.group = group or TensorGroup()
        self._stack = layer_stack(ops, weights.layers, caches)

    def embed(self, ids: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """ids [T] int64 -> the stream [T, E] that enters the first layer."""
        weights = self.weights
        assert weights.embedding is not None, "only the first stage embeds"
        if self.group.size == 1:
            stream = self.ops.embedding(ids, weights.embedding, self.dtype)
        else:
            stream = self._embed_shard(ids, weights.embedding)
        if weights.positions is None:
            return stream
        return stream + weights.positions[batch.positions + self.spec.position_offset]

    def run(self, stream: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """The stream [T, E] after this stage's layers; writes this step's keys and values into caches."""
        return self._stack(stream, batch)

    def forward(self, ids: torch.Tensor, batch: PagedBatch) -> torch.Tensor:
        """ids [T] int64 -> residual stream [T, E] of a model that is one stage."""
        return self.run(self.embed(ids, batch), batch)

    def copy_blocks(self, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """KV blocks `sources` to `destinations` [N], in every layer."""
        for cache in self.caches:
            for tensor in cache.tensors:
                self.ops.copy_blocks(tensor, sources, destinations)

    def hidden(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> the last hidden states [S, E], which embeddings are pooled from."""
        weights = self.weights
        assert weights.norm is not None, "only the last stage has the final norm"
        if weights.norm_bias is None:
            return self.ops.rms_norm(stream, weights.norm, self.spec.norm_eps)
        return layer_norm(stream, weights.norm, weights.norm_bias, self.spec.norm_eps)

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> [S, V]."""
        assert self.weights.lm_head is not None, "only the last stage of a model with a head has logits"
        return self.weights.lm_head(self.ops, self.hidden(stream))

    def _embed_shard(self, ids: torch.Tensor, embedding: Weight) -> torch.Tensor:
        """Each rank looks up the tokens that it holds; the sum over the ranks has all."""
        rows = embedding.shape[0]
        local = ids - self.weights.first_token
        is_held = (local >= 0) & (local < rows)
        stream = self.ops.embedding(torch.where(is_held, local, 0), embedding, self.dtype)
        return self.group.all_reduce(torch.where(is_held.unsqueeze(1), stream, 0))
