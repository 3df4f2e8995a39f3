"""The whole product over a tiny checkpoint: a daemon, a gateway, both clients."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from inferd.testing.http_fields import MODEL
from inferd.testing.parity import Entrances
from inferd.testing.product import Product, running_daemon, running_gateway, running_product
from inferd.testing.tiny_bert import add_sentence_modules, make_tiny_bert
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


@pytest.fixture(scope="session")
def embedder_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon that embeds."""
    from transformers import BertModel

    folder = tmp_path_factory.mktemp("tiny-embedder")
    make_tiny_bert(folder, BertModel, matryoshka_dimensions=[8, 16])
    add_sentence_modules(folder)
    with running_daemon(str(folder), "--served-model-name", "tiny-embedder", "--threads", "1") as address:
        yield address


@pytest.fixture(scope="session")
def both_models(product: Product, embedder_address: str) -> Iterator[httpx.Client]:
    """A gateway in front of two daemons: the chat model's, and the one that embeds."""
    with (
        running_gateway((product.address, embedder_address)) as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client
