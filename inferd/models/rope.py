"""Rotary tables: RopeSpec -> cos | sin of every position. Computed in float32, as the checkpoints were trained."""

from __future__ import annotations

import math

import torch
from inferd_kernels.ops import Rope

from inferd.models.spec import DivisorScaling, LinearScaling, Llama3Scaling, RopeSpec, YarnScaling


def build_rope(spec: RopeSpec, max_positions: int, device: torch.device) -> Rope:
    """cos_sin [max_positions, rotary_dim] float32."""
    frequencies, attention_factor = inverse_frequencies(spec)
    positions = torch.arange(max_positions, dtype=torch.float32)
    angles = positions.unsqueeze(1) * frequencies.unsqueeze(0)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=1) * attention_factor
    return Rope(cos_sin.to(device), spec.rotary_dim)


def inverse_frequencies(spec: RopeSpec) -> tuple[torch.Tensor, float]:
    """(radians per position [rotary_dim / 2], factor on cos and sin)."""
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


def _base_frequencies(spec: RopeSpec) -> torch.Tensor:
    """theta^(-2i/d) (Su et al. 2021)."""
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

    def dimension(rotations: float) -> float:
        return dim * math.log(scaling.original_context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    return frequencies / scaling.factor * ramp + frequencies * (1 - ramp)
