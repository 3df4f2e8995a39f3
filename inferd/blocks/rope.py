"""Rotary position embedding: its description, and the table of cos | sin of every position."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch
    from inferd_kernels.ops import Rope


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """Long wavelengths divided by `factor`, short ones kept, a ramp between (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """NTK-by-parts interpolation and an attention temperature (Peng et al. 2023)."""

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


@dataclass(frozen=True, slots=True)
class DivisorScaling:
    """Each frequency divided by its own divisor: LongRoPE with one set for every length, and what GGUF files state."""

    divisors: tuple[float, ...]
    attention_factor: float


@dataclass(frozen=True, slots=True)
class LongScaling:
    """LongRoPE (Ding et al. 2024): one set of divisors for contexts up to original_context, another for longer ones.

    The keys in a cache keep the rotation that they were written with, so the set cannot change while a sequence grows:
    a server that admits contexts above original_context uses the long set throughout.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    attention_factor: float
    original_context: int

    def for_context(self, context: int) -> DivisorScaling:
        return DivisorScaling(self.long if context > self.original_context else self.short, self.attention_factor)


RopeScaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling | DivisorScaling | LongScaling


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary embedding of the first rotary_dim dimensions of each head.

    interleaved: the checkpoint's rows hold the pairs that are rotated together side by side (0, 1), (2, 3), .. rather
    than half a head apart. Rows are put into the second order when they are loaded; the kernels know only that one.
    """

    theta: float
    rotary_dim: int
    scaling: RopeScaling | None = None
    interleaved: bool = False


def build_rope(spec: RopeSpec, max_positions: int, device: torch.device) -> Rope:
    """cos_sin [max_positions, rotary_dim] float32. Computed in float32, as the checkpoints were trained."""
    import torch
    from inferd_kernels.ops import Rope

    if isinstance(spec.scaling, LongScaling):
        spec = replace(spec, scaling=spec.scaling.for_context(max_positions))
    frequencies, attention_factor = inverse_frequencies(spec)
    positions = torch.arange(max_positions, dtype=torch.float32)
    angles = positions.unsqueeze(1) * frequencies.unsqueeze(0)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor
    return Rope(cos_sin.to(device), spec.rotary_dim)


def inverse_frequencies(spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """(radians per position [rotary_dim / 2], factor on cos and sin)."""
    import torch

    frequencies = _base_frequencies(spec)
    match spec.scaling:
        case None:
            return frequencies, 1.0
        case LinearScaling(factor):
            return frequencies / factor, 1.0
        case Llama3Scaling():
            return _llama3(frequencies, spec.scaling), 1.0
        case DivisorScaling(divisors, attention_factor):
            return frequencies / torch.tensor(divisors), attention_factor
        case YarnScaling():
            return _yarn(frequencies, spec.theta, spec.rotary_dim, spec.scaling), spec.scaling.attention_factor
        case LongScaling():
            raise AssertionError("the served context decides between the two sets")


def _base_frequencies(spec: RopeSpec) -> torch.Tensor:
    """theta^(-2i/d) (Su et al. 2021)."""
    import torch

    exponents = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float32) / spec.rotary_dim
    return 1.0 / spec.theta**exponents


def _llama3(frequencies: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Wavelengths above original / low are divided by factor, below original / high kept, between interpolated."""
    wavelengths = 2 * math.pi / frequencies
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = ((scaling.original_context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


def _yarn(frequencies: torch.Tensor, theta: float, dim: int, scaling: YarnScaling) -> torch.Tensor:
    """Dimensions that turn more than beta_fast times over the original context are kept, fewer than beta_slow
    interpolated, a linear ramp between (Peng et al. 2023, section 3.2)."""
    import torch

    def dimension(rotations: float) -> float:
        return dim * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)
