"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferd.checkpoint.source import resolve_source


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file; fetched by the product's own code unless INFERD_DEMO_MODEL or the cache has it."""
    return resolve_source("demo", None, lambda phase, fraction: None)
