"""The whole product over a tiny checkpoint: a daemon, a gateway, both clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inferd.testing.http_fields import MODEL
from inferd.testing.parity import Entrances
from inferd.testing.product import Product, running_product
from inferd.testing.tiny_chat import write_tiny_chat


@pytest.fixture(scope="session")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    folder = write_tiny_chat(tmp_path_factory.mktemp("tiny-chat"))
    with running_product(
        str(folder), "--served-model-name", MODEL, "other-name", "org/tiny", "--threads", "1"
    ) as running:
        yield running


@pytest.fixture(scope="session")
def entrances(product: Product) -> Iterator[Entrances]:
    with Entrances(product, MODEL) as both:
        yield both
