"""Builds the one-device executor of an encoder: no KV memory, one forward pass per input."""

from __future__ import annotations

import torch

from inferd.checkpoint import Checkpoint
from inferd.config import EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorInfo, Progress
from inferd.executor.build import DTYPES, resolve_device, resolve_dtype, resolve_ops
from inferd.executor.encoder_worker import EncoderWorker
from inferd.executor.local import LocalExecutor
from inferd.models.loader import Loader
from inferd.models.model import Model
from inferd.models.pooling import encoder_context
from inferd.models.spec import ModelSpec


@torch.inference_mode()
def build_encoder_executor(
    config: EngineConfig, checkpoint: Checkpoint, spec: ModelSpec, progress: Progress
) -> LocalExecutor:
    """Raises StartupError for a device, backend or dtype that is not there, and when memory does not suffice."""
    context = encoder_context(spec, checkpoint, config.model.max_model_len)
    device = resolve_device(config.device)
    dtype = DTYPES[resolve_dtype(config.model.dtype, device, checkpoint)]
    ops = resolve_ops(config.device, device)
    try:
        weights = Loader(checkpoint, spec, ops, dtype, device, lambda done: progress("weights", done)).load(context)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise StartupError(f"{device} has too little memory: {str(error).splitlines()[0]}") from None
    info = ExecutorInfo(
        architecture=spec.architecture,
        dtype=str(dtype).removeprefix("torch."),
        quantization="none",
        vocab_size=spec.vocab_size,
        max_context_tokens=context,
        # Places, not memory: an input takes one, and the scheduler wants one in reserve for each that runs.
        block_size=context,
        num_blocks=2 * config.scheduler.max_num_seqs,
        weight_bytes=weights.num_bytes,
        kv_bytes=0,
        backends=dict(ops.backends),
        whole_prompts=True,
    )
    return LocalExecutor(EncoderWorker(Model(spec, weights, (None,) * spec.num_layers, ops, dtype), device), info)
