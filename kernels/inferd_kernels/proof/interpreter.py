"""Repair of Triton's interpreter for bfloat16 and fp8, which it computes on raw bits (triton 3.7 to 3.9).

The interpreter keeps both as unsigned integers. Stock, a bf16 product multiplies bit patterns, casts truncate, and fp8
casts lose a mantissa carry. Here every cast, elementwise operation and dot goes through torch's conversions: round to
nearest even, saturating for fp8 as the hardware does. Reductions stay unrepaired: kernels reduce in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as stock

Builder = stock.InterpreterBuilder
Handle = stock.TensorHandle

# Triton type -> (torch type, numpy carrier, largest finite value if conversions saturate)
SMALL_FLOATS: dict[Any, tuple[torch.dtype, type, float | None]] = {
    tl.bfloat16: (torch.bfloat16, np.uint16, None),
    tl.float8e4nv: (torch.float8_e4m3fn, np.uint8, 448.0),
    tl.float8e5: (torch.float8_e5m2, np.uint8, 57344.0),
}


def unpack(data: np.ndarray, kind: Any) -> np.ndarray:
    """Carrier integers of a small float type -> float32."""
    dtype, carrier, _ = SMALL_FLOATS[kind]
    signed = np.int16 if carrier is np.uint16 else np.uint8
    values = torch.from_numpy(np.array(data).reshape(-1).view(signed)).view(dtype)
    return values.float().numpy().reshape(np.shape(data))


def pack(data: np.ndarray, kind: Any) -> np.ndarray:
    """float32 -> carrier integers, rounded to nearest even, saturated for fp8."""
    dtype, carrier, limit = SMALL_FLOATS[kind]
    values = torch.from_numpy(np.array(data, dtype=np.float32).reshape(-1))
    if limit is not None:
        values = torch.where(values.isnan(), values, values.clamp(-limit, limit))
    signed = torch.int16 if carrier is np.uint16 else torch.uint8
    return values.to(dtype).view(signed).numpy().view(carrier).reshape(np.shape(data))


def as_float(handle: Any) -> np.ndarray:
    kind = handle.dtype.scalar
    return unpack(handle.data, kind) if kind in SMALL_FLOATS else handle.data


def _convert(original: Callable[..., Any]) -> Callable[..., Any]:
    def convert(builder: Any, source: Any, target: Any, *rest: Any) -> Any:
        to = target.scalar
        if source.dtype.scalar not in SMALL_FLOATS and to not in SMALL_FLOATS:
            return original(builder, source, target, *rest)
        values = as_float(source)
        data = pack(values, to) if to in SMALL_FLOATS else values.astype(stock._get_np_dtype(to))
        return Handle(data, to)

    return convert


def _binary(original: Callable[..., Any]) -> Callable[..., Any]:
    def binary(builder: Any, left: Any, right: Any, operation: Callable[..., Any]) -> Any:
        kind = left.dtype.scalar
        if kind not in SMALL_FLOATS:
            return original(builder, left, right, operation)
        values = operation(as_float(left), as_float(right))
        return Handle(values, tl.int1) if values.dtype == bool else Handle(pack(values, kind), kind)

    return binary


def _unary(original: Callable[..., Any]) -> Callable[..., Any]:
    def unary(builder: Any, value: Any, operation: Callable[..., Any]) -> Any:
        kind = value.dtype.scalar
        if kind not in SMALL_FLOATS:
            return original(builder, value, operation)
        return Handle(pack(operation(as_float(value)), kind), kind)

    return unary


def _dot(original: Callable[..., Any]) -> Callable[..., Any]:
    def dot(builder: Any, left: Any, right: Any, accumulator: Any, *rest: Any) -> Any:
        if left.dtype.scalar not in SMALL_FLOATS and right.dtype.scalar not in SMALL_FLOATS:
            return original(builder, left, right, accumulator, *rest)
        product = np.matmul(as_float(left).astype(np.float32), as_float(right).astype(np.float32))
        return Handle((product + accumulator.data).astype(accumulator.data.dtype), accumulator.dtype.scalar)

    return dot


def _quiet(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
        with np.errstate(all="ignore"):  # -inf minus -inf in a masked lane is not an error on a GPU
            return original(executor, *args, **kwargs)

    return call


def repair() -> None:
    """Install the repair. A second call changes nothing."""
    if getattr(Builder, "small_floats_repaired", False):
        return
    Builder.small_floats_repaired = True
    Builder.cast_impl = _convert(Builder.cast_impl)
    Builder.create_fp_to_fp = _convert(Builder.create_fp_to_fp)
    Builder.binary_op = _binary(Builder.binary_op)
    Builder.unary_op = _unary(Builder.unary_op)
    Builder.get_bf16 = lambda _, value: Handle(pack(np.array([value]), tl.bfloat16), tl.bfloat16)
    Builder.create_dot = _dot(Builder.create_dot)
    stock.GridExecutor.__call__ = _quiet(stock.GridExecutor.__call__)
