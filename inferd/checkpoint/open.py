"""One entry for every kind of checkpoint."""

from __future__ import annotations

from pathlib import Path

from inferd.checkpoint.folder import open_folder
from inferd.checkpoint.gguf_checkpoint import open_gguf, split_siblings
from inferd.checkpoint.records import Checkpoint
from inferd.errors import StartupError


def open_checkpoint(path: Path, with_vocabulary: bool = True) -> Checkpoint:
    """The checkpoint at a folder or .gguf file (any part of a split one). Reads headers only.

    Who needs no tokenizer leaves the vocabulary out: it is nearly all of a GGUF header, in time and in memory.

    StartupError with one readable line when something is missing, truncated, corrupt or not supported.
    """
    if path.is_dir():
        if (path / "config.json").is_file():
            return open_folder(path)
        return open_gguf(only_gguf(path), with_vocabulary)
    if not path.is_file():
        raise StartupError(f"{path}: no such file or folder")
    if path.suffix.lower() != ".gguf":
        raise StartupError(f"{path}: a model is a checkpoint folder or a .gguf file")
    return open_gguf(path, with_vocabulary)


def only_gguf(folder: Path) -> Path:
    """The one GGUF model of a folder without config.json; the parts of a split model count as one."""
    files = sorted(folder.glob("*.gguf"))
    models = {split_siblings(file)[0] for file in files}
    if len(models) == 1:
        return models.pop()
    if models:
        names = ", ".join(sorted(model.name for model in models))
        raise StartupError(f"{folder}: several GGUF models ({names}); name one of the files")
    raise StartupError(f"{folder}: no config.json and no .gguf file")
