"""From configuration to a running executor. Loads torch only once it is called."""

from __future__ import annotations

from pathlib import Path

from inferd.checkpoint import open_checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import Executor, Progress
from inferd.executor.group_start import start_group
from inferd.executor.seats import choose_backend
from inferd.executor.torch_import import import_torch
from inferd.models.registry import check_checkpoint


def create_executor(config: EngineConfig, progress: Progress) -> Executor:
    """Open and check the checkpoint, load the weights, size and allocate the KV pool.

    progress gets the phases checkpoint, torch (workers, where there are several), weights and cache, each from 0 to 1.
    Raises StartupError.
    """
    backend = choose_backend(config)
    progress("checkpoint", 0.0)
    checkpoint = open_checkpoint(Path(config.model.path), with_vocabulary=False)
    spec = check_checkpoint(checkpoint)
    progress("checkpoint", 1.0)
    if backend != "local":
        if spec.is_encoder:
            raise StartupError(f"{spec.architecture} is an encoder: it runs on one worker; start several daemons")
        return start_group(config, backend, checkpoint, spec, progress)
    progress("torch", 0.0)
    import_torch()
    from inferd.executor.build import build_local_executor
    from inferd.executor.encoder_build import build_encoder_executor

    progress("torch", 1.0)
    if spec.is_encoder:
        return build_encoder_executor(config, checkpoint, spec, progress)
    return build_local_executor(config, checkpoint, spec, progress)
