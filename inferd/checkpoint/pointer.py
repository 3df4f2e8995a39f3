"""Git LFS leaves a small text file where a large file was not fetched: the most common broken checkpoint."""

from __future__ import annotations

from pathlib import Path

from inferd.errors import StartupError

POINTER = b"version https://git-lfs."


def refuse_pointer(path: Path, beginning: bytes) -> None:
    """Raises StartupError when a file that begins like this is a pointer."""
    if beginning.startswith(POINTER):
        raise StartupError(f"{path}: a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
