"""Experts: a router sends each token to a few of many feed-forwards (Shazeer et al. 2017; Fedus et al. 2021). T packed
tokens, E hidden size, I intermediate size of one expert, n experts, k of them per token."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from inferd.blocks.feed_forward import Activation, FeedForward, FeedForwardSpec
from inferd.blocks.parameters import Parameter, Share

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import ExpertWeights, Ops, Routes

    from inferd.blocks.linear import Linear
    from inferd.blocks.source import BlockSource


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Which experts a token goes to, and with what weights.

    top_k           experts per token
    scores          of the logits: a softmax over all experts, or the sigmoid of each (DeepSeek V3)
    is_normalized   the weights of the chosen ones are divided by their sum
    scale           a factor on the weights
    has_bias        of the linear layer
    has_correction  a learned bias per expert joins the choice, and no weight (DeepSeek V3)
    num_groups      experts stand in so many groups, of which the best `top_groups` take part; a group's rank is its
                    best expert's score, or with a correction the sum of its two best (DeepSeek V2, V3)
    """

    top_k: int
    scores: Literal["softmax", "sigmoid"] = "softmax"
    is_normalized: bool = True
    scale: float = 1.0
    has_bias: bool = False
    has_correction: bool = False
    num_groups: int = 1
    top_groups: int = 1


@dataclass(frozen=True, slots=True)
class ExpertsSpec:
    """The weighted sum of the chosen experts, each a gated feed-forward, and of what is shared by all tokens.

    shared        a feed-forward that every token passes, beside its experts; has_shared_gate: times the sigmoid of a
                  linear function of the token (Qwen2-MoE)
    """

    num_experts: int
    intermediate_size: int
    activation: Activation
    router: RouterSpec
    has_bias: bool = False
    shared: FeedForwardSpec | None = None
    has_shared_gate: bool = False

    def parameters(self, hidden_size: int, share: Share) -> Iterator[Parameter]:
        size, inner, count = self.intermediate_size, share.inner(self.intermediate_size), self.num_experts
        yield Parameter("router.weight", (count, hidden_size))
        if self.router.has_bias:
            yield Parameter("router.bias", (count,))
        if self.router.has_correction:
            yield Parameter("correction", (count,))
        for name in ("experts.gate", "experts.up"):
            yield Parameter(f"{name}.weight", (size, hidden_size), inner, experts=count)
            if self.has_bias:
                yield Parameter(f"{name}.bias", (size,), inner, experts=count)
        yield Parameter("experts.down.weight", (hidden_size, size), None, inner, experts=count)
        if self.has_bias:
            yield Parameter("experts.down.bias", (hidden_size,), experts=count)
        if self.shared is not None:
            for parameter in self.shared.parameters(hidden_size, share):
                yield replace(parameter, name=f"shared.{parameter.name}")
        if self.has_shared_gate:
            yield Parameter("shared_gate.weight", (1, hidden_size))

    def widest(self, share: Share) -> int:
        """Every token visits top_k experts, whose rows may all stand side by side."""
        shared = 0 if self.shared is None else self.shared.widest(share)
        return self.num_experts + 3 * self.router.top_k * len(share.inner(self.intermediate_size)) + shared

    def load(self, source: BlockSource, share: Share) -> Experts:
        return Experts(
            spec=self,
            router=source.linear("router"),
            correction=source.vector("correction").float() if self.router.has_correction else None,
            experts=self._load_experts(source, share),
            shared=None if self.shared is None else self.shared.load(source.part("shared."), share),
            shared_gate=source.linear("shared_gate") if self.has_shared_gate else None,
            reduce=source.reduce,
        )

    def _load_experts(self, source: BlockSource, share: Share) -> ExpertWeights:
        """Of the biases behind the down projections one rank adds all: the others' are zero."""
        names, experts = ("experts.gate", "experts.up"), range(self.num_experts)
        biases = None
        if self.has_bias:
            up, down = (source.biases(self.num_experts, *each) for each in (names, ("experts.down",)))
            biases = up, down if share.rank == 0 else down * 0
        return source.ops.prepare_experts(
            (source.expert_matrix(expert, *names) for expert in experts),
            (source.expert_matrix(expert, "experts.down") for expert in experts),
            self.activation,
            biases,
            source.dtype,
        )


@dataclass(frozen=True, slots=True)
class Experts:
    """The experts of one rank: of each expert its part of the intermediate size."""

    spec: ExpertsSpec
    router: Linear
    correction: torch.Tensor | None  # [n] float32
    experts: ExpertWeights
    shared: FeedForward | None
    shared_gate: Linear | None
    reduce: Callable[[torch.Tensor], torch.Tensor] | None

    def __call__(self, ops: Ops, x: torch.Tensor) -> torch.Tensor:
        """x [T, E] -> [T, E]."""
        out = ops.experts(x, self.experts, self.route(ops, x))
        if self.reduce is not None:
            out = self.reduce(out)
        if self.shared is None:
            return out
        shared = self.shared(ops, x)
        return out + (shared if self.shared_gate is None else shared * self.shared_gate(ops, x).sigmoid())

    def route(self, ops: Ops, x: torch.Tensor) -> Routes:
        """The experts of each token x [T, E], and their weights."""
        from inferd_kernels.ops import Routes

        spec, logits = self.spec.router, self.router(ops, x)
        if spec.scores == "softmax" and spec.num_groups == 1 and self.correction is None and spec.scale == 1.0:
            return ops.route(logits, spec.top_k, spec.is_normalized)
        scores = logits.float().softmax(-1) if spec.scores == "softmax" else logits.float().sigmoid()
        ranked = scores if self.correction is None else scores + self.correction
        if spec.num_groups > 1:
            ranked = self._within_groups(ranked)
        chosen = ranked.topk(spec.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        if spec.is_normalized:
            weights = weights / weights.sum(-1, keepdim=True)
        return Routes(chosen.int(), weights * spec.scale)

    def _within_groups(self, ranked: torch.Tensor) -> torch.Tensor:
        """The scores [T, n] of experts of the best groups; the others can no longer be chosen."""
        spec = self.spec.router
        groups = ranked.unflatten(1, (spec.num_groups, -1))
        best = groups.amax(-1) if self.correction is None else groups.topk(2, dim=-1).values.sum(-1)
        kept = best.topk(spec.top_groups, dim=-1).indices
        is_kept = best.new_zeros(best.shape).scatter(1, kept, 1.0).unsqueeze(2)
        return groups.masked_fill(is_kept == 0, float("-inf")).flatten(1)
