"""Typed access to GGUF metadata: a value of the wrong type or sign is a readable error, not a crash later."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferd.errors import StartupError


@dataclass(frozen=True, slots=True)
class Metadata:
    """Keys are given in full; methods named maybe_* return None for an absent key, the others raise StartupError."""

    path: Path
    values: dict[str, Any]

    def wrong(self, key: str, expected: str) -> StartupError:
        return StartupError(f"{self.path}: metadata {key} is {str(self.values.get(key))[:60]!r}, expected {expected}")

    def maybe_size(self, key: str) -> int | None:
        """An unsigned integer. Per-layer arrays are accepted when all layers agree."""
        value = self.values.get(key)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.wrong(key, "one unsigned integer")
        return value

    def size(self, key: str) -> int:
        """A positive integer that must be there."""
        value = self.maybe_size(key)
        if not value:
            raise self.wrong(key, "a positive integer")
        return value

    def maybe_number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.wrong(key, "a number")
        return float(value)

    def maybe_string(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def maybe_bool(self, key: str) -> bool | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "a boolean")
        return value

    def array(self, key: str, kind: type) -> list[Any]:
        """An array whose items all are of `kind`; absent: empty."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or (value and {type(item) for item in value} != {kind}):
            raise self.wrong(key, f"an array of {kind.__name__}")
        return value
