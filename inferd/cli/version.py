"""`inferd version`: what is installed, read from package metadata so that nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import platform

import inferd
from inferd.cli.arguments import Parsed

SHOWN = ("torch", "grpcio", "protobuf", "tokenizers")


def run(parsed: Parsed) -> int:
    """Print one line; 0."""
    versions = [f"Python {platform.python_version()}", *filter(None, map(installed, SHOWN))]
    print(f"inferd {inferd.__version__} ({', '.join(versions)})")  # noqa: T201
    return 0


def installed(name: str) -> str | None:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return None
