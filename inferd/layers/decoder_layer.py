"""One pre-norm decoder layer with paged attention and an MLP. T packed tokens, E hidden size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import torch
import torch.nn.functional as F
from inferd_kernels.ops import AttentionShape, DecoderLayer, Ops, PagedBatch, QkNorm, Rope

from inferd.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class KVCache:
    """K and V of one layer, each [blocks, page, kv_heads, head_dim]; those of 8 bits are multiplied by scales."""

    k: torch.Tensor
    v: torch.Tensor
    scales: tuple[torch.Tensor, torch.Tensor] | None = None  # K's and V's, [blocks, page, kv_heads] float32

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All memory of the layer; the first dimension counts blocks."""
        return (self.k, self.v, *(self.scales or ()))


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """All a layer computes with. shape carries the layer's own sliding window."""

    attention_norm: torch.Tensor  # [E]
    qkv: Linear
    qk_norm: QkNorm | None
    o: Linear
    mlp_norm: torch.Tensor  # [E]
    gate_up: Linear
    down: Linear
    shape: AttentionShape
    rope: Rope | None
    norm_eps: float
    attention_norm_bias: torch.Tensor | None = None  # [E] of a LayerNorm; None: an RMSNorm
    mlp_norm_bias: torch.Tensor | None = None
    activation: str = "silu_gated"  # or one of ACTIVATIONS: gate_up is then the one matrix before it


ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = MappingProxyType(
    {"relu": F.relu, "gelu": F.gelu, "gelu_tanh": partial(F.gelu, approximate="tanh")}
)
Stack: TypeAlias = Callable[[torch.Tensor, PagedBatch], torch.Tensor]


def layer_stack(ops: Ops, layers: tuple[LayerWeights, ...], caches: tuple[KVCache, ...]) -> Stack:
    """`layers` with their KV memory as one function: (residual stream [T, E], batch) -> residual stream [T, E].

    One call into the backend where it computes whole stacks, else a loop over the ops.
    """
    fused = [_fused_layer(layer, cache) for layer, cache in zip(layers, caches, strict=True)]
    whole = [layer for layer in fused if layer is not None]
    if ops.decoder_stack is not None and layers and len(whole) == len(fused):
        return ops.decoder_stack(whole, layers[0].norm_eps)
    return partial(run_layers, ops, layers, caches)


def _fused_layer(layer: LayerWeights, cache: KVCache) -> DecoderLayer | None:
    """The layer in the form of `Ops.decoder_stack`; None for one that is not in that form, not in float32, or whose
    matrices are spread over ranks, or whose cache has scales."""
    matrices = (layer.qkv, layer.o, layer.gate_up, layer.down)
    if layer.activation != "silu_gated" or layer.attention_norm_bias is not None or layer.mlp_norm_bias is not None:
        return None
    if layer.attention_norm.dtype != torch.float32 or any(matrix.reduce is not None for matrix in matrices):
        return None
    if layer.gate_up.bias is not None or layer.down.bias is not None or cache.scales is not None:
        return None
    return DecoderLayer(
        qkv=layer.qkv.parts,
        o=layer.o.parts,
        gate_up=layer.gate_up.parts,
        down=layer.down.parts,
        attention_norm=layer.attention_norm,
        mlp_norm=layer.mlp_norm,
        k_cache=cache.k,
        v_cache=cache.v,
        shape=layer.shape,
        rope=layer.rope,
        qk_norm=layer.qk_norm,
        qkv_bias=layer.qkv.bias,
        o_bias=layer.o.bias,
    )


def run_layers(
    ops: Ops, layers: tuple[LayerWeights, ...], caches: tuple[KVCache, ...], stream: torch.Tensor, batch: PagedBatch
) -> torch.Tensor:
    """The residual stream [T, E] after `layers`; caches[i] belongs to layers[i] and gets this step's keys and values.

    Any consecutive range of a model's layers: a pipeline stage passes the stream on.
    """
    residual, update = stream, None
    for layer, cache in zip(layers, caches, strict=True):
        residual, update = decoder_layer(ops, layer, cache, batch, residual, update)
    return residual if update is None else residual + update


def decoder_layer(
    ops: Ops,
    layer: LayerWeights,
    cache: KVCache,
    batch: PagedBatch,
    residual: torch.Tensor,
    update: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(residual, update): the stream after a layer is their sum, taken by the next norm in one pass."""
    norm = layer.attention_norm, layer.attention_norm_bias, layer.norm_eps
    normed, residual = _norm(ops, residual, update, *norm)
    qkv, shape = layer.qkv(ops, normed), layer.shape
    q = ops.rope_kv_write(qkv, cache.k, cache.v, batch, layer.rope, shape, layer.qk_norm, cache.scales)
    attended = ops.paged_attention(q, cache.k, cache.v, batch, shape, cache.scales)
    update = layer.o(ops, attended.flatten(1))
    normed, residual = _norm(ops, residual, update, layer.mlp_norm, layer.mlp_norm_bias, layer.norm_eps)
    inner = layer.gate_up(ops, normed)
    activate = ops.silu_mul if layer.activation == "silu_gated" else ACTIVATIONS[layer.activation]
    return residual, layer.down(ops, activate(inner))


def _norm(
    ops: Ops,
    residual: torch.Tensor,
    update: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if bias is not None:
        stream = residual if update is None else residual + update
        return layer_norm(stream, weight, bias, eps), stream
    if update is None:
        return ops.rms_norm(residual, weight, eps), residual
    return ops.add_rms_norm(update, residual, weight, eps)


def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dimension (Ba et al. 2016)."""
    return F.layer_norm(x, weight.shape, weight, bias, eps)
