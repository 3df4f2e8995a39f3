"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

from inferd.checkpoint.source import resolve_source

# As the gateway sets it for itself; here gRPC is imported before the gateway is.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

# A busy machine makes any example slow now and then; how long a test may take is pytest-timeout's business.
hypothesis.settings.register_profile("inferd", deadline=None)
hypothesis.settings.load_profile("inferd")


@pytest.fixture(scope="session")
def demo_gguf() -> Path:
    """The demo model's file; fetched by the product's own code unless INFERD_DEMO_MODEL or the cache has it."""
    return resolve_source("demo", None, lambda phase, fraction: None)
