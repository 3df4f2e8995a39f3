"""One post-norm encoder layer over packed sequences. T packed tokens, E hidden size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from inferd_kernels.ops import AttentionShape, Ops

from inferd.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """weight and bias [E]."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, ops: Ops, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """The norm of x + residual, each [T, E]."""
        return ops.add_layer_norm(x, residual, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class EncoderLayerWeights:
    """All a layer computes with."""

    qkv: Linear
    o: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    mlp_norm: LayerNorm
    shape: AttentionShape
    activation: str


def encoder_layer(ops: Ops, layer: EncoderLayerWeights, stream: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """The stream [T, E] after a layer; rows cu_seqlens[i]:cu_seqlens[i+1] are sequence i and see each other alone."""
    attended = ops.self_attention(layer.qkv(ops, stream), cu_seqlens, layer.shape)
    stream = layer.attention_norm(ops, layer.o(ops, attended.flatten(1)), stream)
    inner = ops.activate(layer.up(ops, stream), layer.activation)
    return layer.mlp_norm(ops, layer.down(ops, inner), stream)
