"""The only door to kernels: `load_ops` picks a backend at start and returns its ops as one value.

What each op computes is in `inferd_kernels.reference`, what it takes in `inferd_kernels.operands`.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from inferd_kernels.operands import (
    Activation,
    Attention,
    AttentionShape,
    DecoderLayer,
    ExpertWeights,
    KVCache,
    LatentCache,
    PagedBatch,
    QkNorm,
    Rope,
    Routes,
    SamplingBatch,
    Stack,
)
from inferd_kernels.reference import Ops

__all__ = [
    "BACKENDS",
    "Activation",
    "Attention",
    "AttentionShape",
    "DecoderLayer",
    "ExpertWeights",
    "KVCache",
    "LatentCache",
    "Ops",
    "PagedBatch",
    "QkNorm",
    "Rope",
    "Routes",
    "SamplingBatch",
    "Stack",
    "load_ops",
]

BACKENDS = ("auto", "native", "triton", "varlen", "reference")


def load_ops(device: str = "cpu", backend: str = "auto", threads: int | None = None) -> Ops:
    """The ops of a backend on `device`.

    backend: "auto" takes the fastest that is there, "native" the compiled CPU ops, "triton" the GPU kernels, "varlen"
    the GPU kernels with torch's FlashAttention in place of theirs, "reference" torch alone.
    threads: of the native CPU ops, default the processors this process may use.
    Raises ValueError when `backend` is unknown or cannot run on `device`.
    """
    if backend not in BACKENDS:
        raise ValueError(f"kernel backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if backend == "native" or (backend == "auto" and device == "cpu"):
        from inferd_kernels.cpu import load_native

        return load_native(device, threads, required=backend == "native") or Ops()
    if backend == "varlen":
        return _load_varlen(device)
    if backend == "triton" or (backend == "auto" and device.startswith("cuda") and find_spec("triton") is not None):
        return _load_triton(device)
    return Ops()


def _load_triton(device: str) -> Ops:
    """Every op in Triton, for CUDA and ROCm; on the CPU only under Triton's interpreter (TRITON_INTERPRET=1)."""
    if not device.startswith("cuda") and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"kernel backend 'triton' needs a cuda device, not {device!r}")
    if find_spec("triton") is None:
        raise ValueError("kernel backend 'triton' needs the package triton (extra: cuda)")
    from inferd_kernels.triton.backend import TritonOps

    return TritonOps()


def _load_varlen(device: str) -> Ops:
    """The Triton ops, with torch's FlashAttention in place of their attention."""
    if not device.startswith("cuda"):
        raise ValueError(f"kernel backend 'varlen' needs a cuda device, not {device!r}")
    if find_spec("triton") is None:
        raise ValueError("kernel backend 'varlen' needs the package triton (extra: cuda)")
    from inferd_kernels.triton.backend import VarlenOps

    return VarlenOps()
