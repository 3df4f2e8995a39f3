"""Builds the one-device executor: device, dtype, ops, weights, KV memory, in this order."""

from __future__ import annotations

import os
from collections import Counter

import torch
from inferd_kernels.ops import Ops, load_ops

from inferd.checkpoint import Checkpoint
from inferd.config import DeviceConfig, EngineConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorInfo, Progress
from inferd.executor.local import LocalExecutor
from inferd.executor.memory import KVPlan, cache_budget, plan_kv, requested_context
from inferd.executor.worker import Worker
from inferd.layers.decoder_layer import KVCache
from inferd.models.decoder import Decoder
from inferd.models.loader import Loader
from inferd.models.spec import DecoderSpec

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKPOINT_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@torch.inference_mode()
def build_local_executor(
    config: EngineConfig, checkpoint: Checkpoint, spec: DecoderSpec, progress: Progress
) -> LocalExecutor:
    """Raises StartupError for a device, backend or dtype that is not there, and when memory does not suffice."""
    device = resolve_device(config.device)
    dtype = DTYPES[resolve_dtype(config.model.dtype, device, checkpoint)]
    ops = resolve_ops(config.device, device)
    try:
        loader = Loader(checkpoint, spec, ops, dtype, device, lambda done: progress("weights", done))
        weights = loader.load(requested_context(spec, config.model.max_model_len))
        progress("cache", 0.0)
        kv_dtype = resolve_cache_dtype(config.cache.dtype, dtype)
        plan = plan_kv(spec, config, kv_dtype.itemsize, cache_budget(spec, config, device, dtype.itemsize))
        decoder = Decoder(spec, weights, allocate_caches(spec, plan, kv_dtype, device), ops, dtype)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise StartupError(f"{device} has too little memory: {str(error).splitlines()[0]}") from None
    progress("cache", 1.0)
    info = executor_info(checkpoint, decoder, plan)
    return LocalExecutor(Worker(decoder, plan.block_size, device), info)


def resolve_device(config: DeviceConfig) -> torch.device:
    """auto: the accelerator if there is one. On a CPU torch gets config.threads or every core of the affinity mask."""
    has_cuda = torch.cuda.is_available()
    if config.device == "cuda" and not has_cuda:
        raise StartupError("device cuda was asked for, but torch finds none")
    if config.device != "cpu" and has_cuda:
        return torch.device("cuda")
    torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
    return torch.device("cpu")


def resolve_dtype(stated: str, device: torch.device, checkpoint: Checkpoint) -> str:
    """auto: float32 on a CPU, whose matrix units have no half precision in general; elsewhere the type of most of the
    checkpoint's bytes, bfloat16 for quantized ones."""
    if stated != "auto":
        return stated
    if device.type == "cpu":
        return "float32"
    return CHECKPOINT_DTYPES.get(dominant_format(checkpoint), "bfloat16")


def resolve_cache_dtype(stated: str, model_dtype: torch.dtype) -> torch.dtype:
    if stated == "auto":
        return model_dtype
    if stated not in DTYPES:
        raise StartupError(f"KV cache dtype {stated!r} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[stated]


def resolve_ops(config: DeviceConfig, device: torch.device) -> Ops:
    try:
        return load_ops(device.type, config.kernel_backend)
    except ValueError as error:
        raise StartupError(str(error)) from None


def dominant_format(checkpoint: Checkpoint) -> str:
    """The tensor format that holds most of the checkpoint's bytes."""
    sizes: Counter[str] = Counter()
    for record in checkpoint.tensors.values():
        sizes[record.format] += record.nbytes
    return sizes.most_common(1)[0][0]


def allocate_caches(spec: DecoderSpec, plan: KVPlan, dtype: torch.dtype, device: torch.device) -> tuple[KVCache, ...]:
    """K and V of each layer, [blocks, page, kv_heads, head_dim]; memory is taken when first written."""
    shape = (plan.num_blocks, plan.block_size, spec.num_kv_heads, spec.head_dim)
    try:
        return tuple(
            KVCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(spec.num_layers)
        )
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise StartupError(f"the KV cache of {plan.total_bytes} bytes cannot be allocated: {reason}") from None


def executor_info(checkpoint: Checkpoint, decoder: Decoder, plan: KVPlan) -> ExecutorInfo:
    stored = dominant_format(checkpoint)
    return ExecutorInfo(
        architecture=decoder.spec.architecture,
        dtype=str(decoder.dtype).removeprefix("torch."),
        quantization="none" if stored in CHECKPOINT_DTYPES else stored,
        vocab_size=decoder.spec.vocab_size,
        max_context_tokens=plan.max_context,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        weight_bytes=decoder.weights.num_bytes,
        kv_bytes=plan.total_bytes,
        backends=dict(decoder.ops.backends),
    )
