"""One running product for the folder's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from inferd.testing.product import Product, running_product


@pytest.fixture(scope="session")
def product(demo_gguf: Path) -> Iterator[Product]:
    with running_product(str(demo_gguf), "--served-model-name", "demo") as running:
        yield running
