"""A layer: norms, a mixer that looks at other tokens, and a feed-forward. T packed tokens, E hidden size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from inferd.blocks.attention import Attention, AttentionSpec
from inferd.blocks.experts import Experts, ExpertsSpec
from inferd.blocks.feed_forward import FeedForward, FeedForwardSpec
from inferd.blocks.latent_attention import LatentAttention, LatentAttentionSpec
from inferd.blocks.norm import Norm, NormSpec
from inferd.blocks.parameters import Parameter, Share

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import DecoderLayer, Ops, PagedBatch

    from inferd.blocks.caches import Cache
    from inferd.blocks.source import BlockSource

MixerSpec: TypeAlias = AttentionSpec | LatentAttentionSpec
Mixer: TypeAlias = Attention | LatentAttention
FeedForwardBlockSpec: TypeAlias = FeedForwardSpec | ExpertsSpec
FeedForwardBlock: TypeAlias = FeedForward | Experts
NORMS = ("mixer_norm", "mixer_post_norm", "feed_forward_norm", "feed_forward_post_norm")


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """How a layer's blocks meet in the residual stream s; M is the mixer, F the feed-forward, N their norms.

    order "pre"       s += M(N s); s += F(N s)
          "post"      s = N(s + M s); s = N(s + F s)                  (BERT)
          "parallel"  s += M(N s) + F(N s), both of the same s; without a norm of its own, F reads M's
    The post norms are of what a block gives, before it is added (Gemma 2). residual_scale multiplies it (Granite).
    """

    mixer: MixerSpec
    feed_forward: FeedForwardBlockSpec
    mixer_norm: NormSpec | None = None
    feed_forward_norm: NormSpec | None = None
    mixer_post_norm: NormSpec | None = None
    feed_forward_post_norm: NormSpec | None = None
    order: Literal["pre", "post", "parallel"] = "pre"
    residual_scale: float = 1.0

    def parameters(self, hidden_size: int, share: Share) -> Iterator[Parameter]:
        """Names begin with the block's: mixer.q.weight, feed_forward.up.weight, mixer_norm.weight."""
        for name in NORMS:
            if (norm := getattr(self, name)) is not None:
                yield from norm.parameters(name, hidden_size)
        for name, block in (("mixer", self.mixer), ("feed_forward", self.feed_forward)):
            for parameter in block.parameters(hidden_size, share):
                yield replace(parameter, name=f"{name}.{parameter.name}")

    def widest(self, hidden_size: int, share: Share) -> int:
        """Values per token that the layer holds at once, at most."""
        return self.mixer.widest(share) + self.feed_forward.widest(share) + 4 * hidden_size

    def load(self, source: Callable[[str], BlockSource], hidden_size: int, share: Share) -> Layer:
        """source: of the parameters whose names begin with a prefix."""

        def norm(name: str) -> Norm | None:
            spec: NormSpec | None = getattr(self, name)
            return None if spec is None else Norm.load(spec, name, hidden_size, source(""))

        return Layer(
            mixer=self.mixer.load(source("mixer."), share),
            feed_forward=self.feed_forward.load(source("feed_forward."), share),
            mixer_norm=norm("mixer_norm"),
            feed_forward_norm=norm("feed_forward_norm"),
            mixer_post_norm=norm("mixer_post_norm"),
            feed_forward_post_norm=norm("feed_forward_post_norm"),
            order=self.order,
            residual_scale=self.residual_scale,
        )


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer's blocks with their weights. Fields as in LayerSpec."""

    mixer: Mixer
    feed_forward: FeedForwardBlock
    mixer_norm: Norm | None
    feed_forward_norm: Norm | None
    mixer_post_norm: Norm | None
    feed_forward_post_norm: Norm | None
    order: Literal["pre", "post", "parallel"]
    residual_scale: float

    def __call__(
        self, ops: Ops, stream: torch.Tensor, update: torch.Tensor | None, cache: Any, batch: PagedBatch
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """cache: what the mixer's cache_need allocated, None without one. (stream [T, E], update): the stream after a
        layer is their sum, which the next norm takes in one pass."""
        if self.order == "post":
            return self._post(ops, stream, update, cache, batch), None
        normed, stream = _normed(ops, self.mixer_norm, stream, update)
        mixed = self._finished(ops, self.mixer(ops, normed, cache, batch), self.mixer_post_norm)
        if self.order == "parallel":
            if self.feed_forward_norm is not None:
                normed = self.feed_forward_norm(ops, stream)
            fed = self._finished(ops, self.feed_forward(ops, normed), self.feed_forward_post_norm)
            return stream, mixed + fed
        normed, stream = _normed(ops, self.feed_forward_norm, stream, mixed)
        return stream, self._finished(ops, self.feed_forward(ops, normed), self.feed_forward_post_norm)

    def _post(
        self, ops: Ops, stream: torch.Tensor, update: torch.Tensor | None, cache: Any, batch: PagedBatch
    ) -> torch.Tensor:
        assert self.mixer_norm is not None, "a post-norm layer has norms"
        assert self.feed_forward_norm is not None, "a post-norm layer has norms"
        stream = stream if update is None else stream + update
        stream = self.mixer_norm.of_sum(ops, self.mixer(ops, stream, cache, batch), stream)[0]
        return self.feed_forward_norm.of_sum(ops, self.feed_forward(ops, stream), stream)[0]

    def _finished(self, ops: Ops, output: torch.Tensor, norm: Norm | None) -> torch.Tensor:
        """What a block gives, as it is added to the stream."""
        output = output if norm is None else norm(ops, output)
        return output if self.residual_scale == 1.0 else output * self.residual_scale

    def fused(self, cache: Any) -> DecoderLayer | None:
        """The layer in the form of `Ops.decoder_stack`: pre-norm attention and a feed-forward gated by SiLU, in
        float32, on one rank. None for one that is not of this pattern."""
        from inferd_kernels.ops import DecoderLayer

        mixer, feed, norms = self.mixer, self.feed_forward, (self.mixer_norm, self.feed_forward_norm)
        if not (isinstance(mixer, Attention) and isinstance(feed, FeedForward) and self._is_plain() and cache):
            return None
        if feed.activation != "silu" or not feed.is_gated or feed.up.bias is not None or feed.down.bias is not None:
            return None
        if mixer.has_gate or mixer.norm_over == "vector":
            return None
        if any(matrix.reduce is not None for matrix in (mixer.o, feed.down)):
            return None
        mixer_norm, feed_forward_norm = norms
        assert mixer_norm is not None
        assert feed_forward_norm is not None
        return DecoderLayer(
            qkv=mixer.qkv.parts,
            o=mixer.o.parts,
            gate_up=feed.up.parts,
            down=feed.down.parts,
            attention_norm=mixer_norm.weight,
            mlp_norm=feed_forward_norm.weight,
            attention=mixer.over(cache),
            qkv_bias=mixer.qkv.bias,
            o_bias=mixer.o.bias,
        )

    def _is_plain(self) -> bool:
        """Whether two RMSNorms of equal eps in float32 stand before the blocks, and nothing behind them."""
        before, behind = (self.mixer_norm, self.feed_forward_norm), (self.mixer_post_norm, self.feed_forward_post_norm)
        if self.order != "pre" or self.residual_scale != 1.0 or any(norm is not None for norm in behind):
            return False
        present = [norm for norm in before if norm is not None and norm.bias is None]
        if len(present) < len(before) or present[0].eps != present[1].eps:
            return False
        return all(norm.weight.is_floating_point() and norm.weight.element_size() == 4 for norm in present)


def _normed(
    ops: Ops, norm: Norm | None, stream: torch.Tensor, update: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(what a block reads, the stream after the update)."""
    if norm is not None:
        return norm.of_sum(ops, update, stream)
    stream = stream if update is None else stream + update
    return stream, stream


Stack: TypeAlias = "Callable[..., torch.Tensor]"  # (stream, a PagedBatch for each cache group) -> stream


def layer_stack(
    ops: Ops, layers: tuple[Layer, ...], caches: tuple[Cache | None, ...], groups: tuple[int, ...]
) -> Stack:
    """`layers` with their caches as one function: (residual stream [T, E], batches) -> residual stream [T, E].

    One call into the backend where it computes whole stacks of this pattern and all layers are of one cache group, else
    a loop over the layers. groups: of each layer.
    """
    if layers and not any(groups):
        fused = [layer.fused(cache) for layer, cache in zip(layers, caches, strict=True)]
        whole = [layer for layer in fused if layer is not None]
        epsilons = {layer.mixer_norm.eps for layer in layers if layer.mixer_norm is not None}
        if len(whole) == len(fused) and len(epsilons) == 1:
            stack = ops.decoder_stack(whole, epsilons.pop())
            if stack is not None:
                return stack
    return partial(run_layers, ops, layers, caches, groups)


def run_layers(
    ops: Ops,
    layers: tuple[Layer, ...],
    caches: tuple[Cache | None, ...],
    groups: tuple[int, ...],
    stream: torch.Tensor,
    *batches: PagedBatch,
) -> torch.Tensor:
    """The residual stream [T, E] after `layers`; caches[i] belongs to layers[i] and gets this step's keys and values,
    as batches[groups[i]] says.

    Any consecutive range of a model's layers: a pipeline stage passes the stream on.
    """
    update: torch.Tensor | None = None
    for layer, cache, group in zip(layers, caches, groups, strict=True):
        stream, update = layer(ops, stream, update, cache, batches[group])
    return stream if update is None else stream + update
