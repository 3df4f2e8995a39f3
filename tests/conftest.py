"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

from inferd.checkpoint.source import resolve_source

# A busy machine makes any example slow now and then; how long a test may take is pytest-timeout's business.
hypothesis.settings.register_profile("inferd", deadline=None)
hypothesis.settings.load_profile("inferd")


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file; fetched by the product's own code unless INFERD_DEMO_MODEL or the cache has it."""
    return resolve_source("demo", None, lambda phase, fraction: None)
