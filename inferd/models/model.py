"""What one rank computes of a model: token ids of a step to the residual stream, its layers, rows of it to logits or
labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import Ops, PagedBatch
from inferd_kernels.weights import Weight

from inferd.blocks.caches import Cache, LayerGroups
from inferd.blocks.layer import Layer, layer_stack
from inferd.blocks.linear import Linear
from inferd.blocks.norm import Norm
from inferd.cache_groups import FULL
from inferd.models.spec import ModelSpec
from inferd.parallel.context import TensorGroup


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """embedding and head are one prepared weight where the model ties them.

    The first pipeline stage has embedding, positions and token types, the last one norm, head, pooler and classifier.
    V is this rank's part of the vocabulary, which begins with first_token.
    """

    embedding: Weight | None  # [V, E]
    positions: torch.Tensor | None  # [positions, E]; None also where positions are rotary
    token_types: torch.Tensor | None  # [types, E]
    embedding_norm: Norm | None
    layers: tuple[Layer, ...]
    norm: Norm | None
    head: Linear | None
    pooler: Linear | None
    classifier: Linear | None
    num_bytes: int
    first_token: int = 0


class Model:
    """The parts of a forward pass. caches[i] is the cache of layer i, None where it keeps nothing; dtype that of the
    residual stream.

    Layers of different cache groups may have one and the same cache, in which each group has blocks of its own.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: ModelWeights,
        caches: tuple[Cache | None, ...],
        ops: Ops,
        dtype: torch.dtype,
        group: TensorGroup | None = None,
        groups: LayerGroups | None = None,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.caches = caches
        groups = groups or LayerGroups(FULL, (0,) * len(caches))
        self.windows = groups.windows
        self.pools = list({id(cache): cache for cache in caches if cache is not None}.values())  # each once
        self.ops = ops
        self.dtype = dtype
        self.group = group or TensorGroup()
        self._stack = layer_stack(ops, weights.layers, caches, groups.of_layers)

    def embed(self, ids: torch.Tensor, batch: PagedBatch, token_types: torch.Tensor | None = None) -> torch.Tensor:
        """ids [T] int64 -> the stream [T, E] that enters the first layer. token_types [T] int64: segments, where the
        model tells them apart."""
        weights, spec = self.weights, self.spec.embedding
        assert weights.embedding is not None, "only the first stage embeds"
        if self.group.size == 1:
            stream = self.ops.embedding(ids, weights.embedding, self.dtype)
        else:
            stream = self._embed_shard(ids, weights.embedding)
        if spec.scale != 1.0:
            stream = stream * torch.tensor(spec.scale, dtype=self.dtype)
        added = None
        if weights.positions is not None:
            added = weights.positions[batch.positions + spec.position_offset]
        if weights.token_types is not None:
            types = weights.token_types[0] if token_types is None else weights.token_types[token_types]
            added = types if added is None else added + types
        if weights.embedding_norm is not None:
            return weights.embedding_norm.of_sum(self.ops, added, stream)[0]
        return stream if added is None else stream + added

    def run(self, stream: torch.Tensor, *batches: PagedBatch) -> torch.Tensor:
        """The stream [T, E] after this stage's layers; writes this step's keys and values into caches. batches: one for
        each cache group."""
        return self._stack(stream, *batches)

    def forward(self, ids: torch.Tensor, *batches: PagedBatch, token_types: torch.Tensor | None = None) -> torch.Tensor:
        """ids [T] int64 -> residual stream [T, E] of a model that is one stage."""
        return self.run(self.embed(ids, batches[0], token_types), *batches)

    def copy_blocks(self, sources: torch.Tensor, destinations: torch.Tensor) -> None:
        """KV blocks `sources` to `destinations` [N], in every layer."""
        for cache in self.pools:
            for tensor in cache.tensors:
                self.ops.copy_blocks(tensor, sources, destinations)

    def hidden(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> the last hidden states [S, E], which embeddings are pooled from."""
        return stream if self.weights.norm is None else self.weights.norm(self.ops, stream)

    def logits(self, stream: torch.Tensor) -> torch.Tensor:
        """Rows [S, E] of the residual stream -> [S, V]."""
        head = self.spec.head
        assert head is not None, "a model without a head has no logits"
        assert self.weights.head is not None, "only the last stage has the head"
        logits = self.weights.head(self.ops, self.hidden(stream))
        if head.scale != 1.0:
            logits = logits * head.scale
        return head.softcap * torch.tanh(logits / head.softcap) if head.softcap else logits

    def class_logits(self, first: torch.Tensor) -> torch.Tensor:
        """States [B, E] of first tokens -> [B, labels]. Only for a model with a classifier."""
        pooler, classifier = self.weights.pooler, self.weights.classifier
        assert pooler is not None, "the model has no classifier"
        assert classifier is not None, "the model has no classifier"
        return classifier(self.ops, pooler(self.ops, first).tanh())

    def _embed_shard(self, ids: torch.Tensor, embedding: Weight) -> torch.Tensor:
        """Each rank looks up the tokens that it holds; the sum over the ranks has all."""
        rows = embedding.shape[0]
        local = ids - self.weights.first_token
        is_held = (local >= 0) & (local < rows)
        stream = self.ops.embedding(torch.where(is_held, local, 0), embedding, self.dtype)
        return self.group.all_reduce(torch.where(is_held.unsqueeze(1), stream, 0))
