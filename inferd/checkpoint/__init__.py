"""Checkpoints on disk: where they come from and what their headers say. Reads no weights, loads no torch."""

from __future__ import annotations

from inferd.checkpoint.open import open_checkpoint
from inferd.checkpoint.records import Checkpoint, GgufVocabulary, TensorRecord, TokenizerFiles, TokenizerSource

__all__ = [
    "Checkpoint",
    "GgufVocabulary",
    "TensorRecord",
    "TokenizerFiles",
    "TokenizerSource",
    "open_checkpoint",
]
