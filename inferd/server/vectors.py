"""Raw vectors of the engine -> what callers get: cut, normalized, in their dtype. Shapes: N inputs, D dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from inferd.models.pooling import Activation
from inferd.v1 import inference_pb2

Matrix: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"
MIN_NORM = 1e-12  # a vector of zeros stays one


def matrix_of(vectors: Sequence[bytes]) -> Matrix:
    """[N, D] float32 of little-endian rows of one length."""
    rows = np.frombuffer(b"".join(vectors), "<f4").astype(np.float32)
    return rows.reshape(len(vectors), -1)


def normalized(matrix: Matrix) -> Matrix:
    """Each row [D] divided by its Euclidean norm."""
    norms = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.maximum(norms, MIN_NORM), np.float32)


def encoded(matrix: Matrix, dtype: int) -> bytes:
    """Row-major little-endian bytes in an inference_pb2.VectorDtype."""
    if dtype == inference_pb2.VECTOR_DTYPE_FLOAT16:
        with np.errstate(over="ignore"):  # beyond 65504: infinity, as the type has it
            return matrix.astype("<f2").tobytes()
    if dtype == inference_pb2.VECTOR_DTYPE_BFLOAT16:
        bits = matrix.astype("<f4").view("<u4")
        # Round half to even on the 16 bits that go; the values are finite.
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return (rounded >> np.uint32(16)).astype("<u2").tobytes()
    return matrix.astype("<f4").tobytes()


def cosine(first: Matrix, second: Matrix) -> list[float]:
    """Similarity of row i of each [N, D]; one row of `first` meets all of `second`."""
    return [float(value) for value in (normalized(first) * normalized(second)).sum(axis=1)]


def activated(logits: Matrix, activation: Activation) -> Matrix:
    """Scores [N, labels] of logits [N, labels], computed in float64."""
    values = logits.astype(np.float64)
    if activation == "sigmoid":
        values = 0.5 * (1.0 + np.tanh(0.5 * values))  # 1 / (1 + e^-x), without its overflow
    elif activation == "softmax":
        values = np.exp(values - values.max(axis=1, keepdims=True))
        values /= values.sum(axis=1, keepdims=True)
    return values.astype(np.float32)
