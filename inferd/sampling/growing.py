"""An append-only array of numbers whose content is a numpy view: amortized O(1) appends, no copy to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class GrowingArray:
    """Capacity doubles when it is full. `values` is valid until the next extend."""

    def __init__(self, dtype: type[np.generic]) -> None:
        self._data = np.empty(8, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def values(self) -> np.ndarray:
        return self._data[: self._size]

    def extend(self, values: Sequence[int]) -> None:
        end = self._size + len(values)
        if end > self._data.size:
            data = np.empty(max(end, 2 * self._data.size), self._data.dtype)
            data[: self._size] = self.values
            self._data = data
        self._data[self._size : end] = values
        self._size = end
