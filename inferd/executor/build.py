"""Builds a worker: device, dtype, ops, weights, then, once the number of KV blocks is known, its KV memory.

The same steps for the one worker of this process and for each of many; what differs comes in a ParallelContext.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from inferd_kernels.host import usable_processors
from inferd_kernels.ops import Ops, load_ops
from inferd_kernels.quantize import GROUP

from inferd.blocks.attention import AttentionSpec
from inferd.blocks.caches import Cache, CacheNeed, LayerGroups, block_needs, place_layers
from inferd.blocks.parameters import WHOLE
from inferd.cache_groups import FULL
from inferd.checkpoint import Checkpoint
from inferd.checkpoint.gguf_header import GGML_BLOCKS
from inferd.config import CacheDtype, DeviceConfig, EngineConfig, Quantization, SchedulerConfig
from inferd.errors import StartupError
from inferd.executor.base import ExecutorInfo, Progress
from inferd.executor.decode_graphs import GRAPH_BYTES, DecodeGraphs, num_graphs
from inferd.executor.device_worker import DeviceWorker
from inferd.executor.kv_plan import KVPlan, KVRoom, block_bytes, plan_kv, planned_groups, requested_context
from inferd.executor.local import DeviceExecutor, LocalExecutor
from inferd.executor.memory import cache_budget, step_bytes
from inferd.executor.rehearsal import (
    decode_plan,
    for_groups,
    largest_plan,
    max_decodes,
    measure_step,
    num_blocks,
    warm_up_plans,
)
from inferd.executor.worker import Worker
from inferd.models.loader import Loader
from inferd.models.model import Model, ModelWeights
from inferd.models.registry import names_of
from inferd.models.shard import ModelShard, shard_model
from inferd.models.spec import ModelSpec
from inferd.models.stored import StoredParameter, stored_parameters
from inferd.parallel.context import ParallelContext
from inferd.parallel.placement import Placement
from inferd.step import StepPlan, StepResult

CACHE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CHECKPOINT_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
STEP_CONTEXT = 512  # tokens whose keys and values a step of decodes is taken to read, in two bytes a value


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One rank's weights and all that is decided about computing with them."""

    spec: ModelSpec
    shard: ModelShard
    weights: ModelWeights
    ops: Ops
    dtype: torch.dtype
    kv_dtype: torch.dtype
    device: torch.device
    context: ParallelContext
    quantization: str
    bytes_read: int
    windows: tuple[int, ...] = FULL  # of the cache groups of the whole model

    @property
    def looks_ahead(self) -> bool:
        """Whether a step only launches work on an accelerator: Triton's ops do; latent attention is torch's, which
        reads lengths back."""
        names = {"sample", *(need.attention_op for need in self.cache_needs if need is not None)}
        return all(self.ops.backends[name] in ("triton", "varlen") for name in names)

    @property
    def replays_graphs(self) -> bool:
        return self.looks_ahead and self.device.type == "cuda" and self.context.placement.world_size == 1

    @property
    def cache_needs(self) -> tuple[CacheNeed | None, ...]:
        """Of this rank's layers."""
        share = self.shard.share
        return tuple(self.spec.layers[index].mixer.cache_need(share) for index in self.shard.layers)

    @property
    def block_needs(self) -> list[CacheNeed | None]:
        """What a block holds on this rank."""
        return block_needs(self.cache_needs, self.windows)


@torch.inference_mode()
def build_local_executor(
    config: EngineConfig, checkpoint: Checkpoint, spec: ModelSpec, progress: Progress
) -> LocalExecutor | DeviceExecutor:
    """One that looks ahead and replays graphs where the ops wait for nothing: Triton's do.

    Raises StartupError for a device, backend or dtype that is not there, and when memory does not suffice."""
    device = resolve_device(config.device)
    model = load_model(config, checkpoint, spec, device, lambda done: progress("weights", done))
    progress("cache", 0.0)
    plan = plan_kv(spec, config, [kv_room(model, config)])
    executor: LocalExecutor | DeviceExecutor
    if model.looks_ahead:
        if config.scheduler.speculative is not None:
            raise StartupError("speculative-config: a GPU's steps look ahead instead of checking drafts")
        device_worker = build_device_worker(model, plan, config.scheduler)
        executor = DeviceExecutor(device_worker, executor_info(model, plan, looks_ahead=True))
    else:
        executor = LocalExecutor(build_worker(model, plan.num_blocks, plan.block_size), executor_info(model, plan))
    progress("cache", 1.0)
    return executor


@torch.inference_mode()
def load_model(
    config: EngineConfig,
    checkpoint: Checkpoint,
    spec: ModelSpec,
    device: torch.device,
    notify: Callable[[float], None],
    context: ParallelContext | None = None,
) -> LoadedModel:
    """The weights of a rank, on its device. Raises StartupError like build_local_executor."""
    context = context or ParallelContext()
    dtype = DTYPES[resolve_dtype(config.model.dtype, device, checkpoint)]
    ops = resolve_ops(config.device, device)
    kv_dtype = resolve_cache_dtype(config.cache.dtype, dtype, ops)
    wanted = config.model.quantization
    if wanted is not None and wanted not in ops.quantizations:
        backend = ops.backends["linear"]
        raise StartupError(f"quantization {wanted}: kernel backend {backend} takes {', '.join(ops.quantizations)}")
    shard = rank_shard(checkpoint, spec, context.placement, wanted)
    held = shard if context.placement.world_size > 1 else None
    loader = Loader(checkpoint, spec, ops, dtype, device, notify, held, context.tensor, wanted)
    try:
        weights = loader.load(requested_context(spec, config.model.max_model_len))
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise StartupError(f"{device} has too little memory: {str(error).splitlines()[0]}") from None
    stored = dominant_format(checkpoint)
    quantization = (wanted or "none") if stored in CHECKPOINT_DTYPES else stored
    bytes_read, windows = loader.bytes_read, planned_groups(spec, config).windows
    return LoadedModel(spec, shard, weights, ops, dtype, kv_dtype, device, context, quantization, bytes_read, windows)


def rank_shard(
    checkpoint: Checkpoint, spec: ModelSpec, placement: Placement, quantization: Quantization | None = None
) -> ModelShard:
    """What a rank holds; quantization: of float matrices at load. The MLP is cut between quantized blocks where there
    are any; layers go to stages by the bytes that a step of decodes reads: weights, and some context's keys and
    values, which are little beside a large model's layer and a fifth of a small one's."""
    unit = 1 if quantization is None else GROUP
    costs = [block_bytes([layer.mixer.cache_need(WHOLE)], STEP_CONTEXT, 2) for layer in spec.layers]
    head = "embedding.weight" if spec.head is not None and spec.head.is_tied else "head.weight"
    for stored in stored_parameters(spec, names_of(checkpoint), checkpoint.tensors):
        if stored.layer is not None:
            costs[stored.layer] += weight_bytes(stored, quantization)
        elif stored.parameter.name == head:
            costs[-1] += weight_bytes(stored, quantization)
        if stored.parameter.name.startswith("feed_forward.") and stored.parameter.columns is not None:
            unit = max(unit, GGML_BLOCKS.get(stored.record.format, (1, 0))[0])
    return shard_model(spec, placement, unit, costs)


def weight_bytes(stored: StoredParameter, quantization: Quantization | None) -> int:
    """Of one parameter as it is stored or will be quantized; scales are left out."""
    if quantization is None or stored.record.format not in CHECKPOINT_DTYPES:
        return stored.num_bytes
    bits = 4 if quantization == "q4" and stored.layer is not None else 8
    return math.prod(stored.parameter.shape) * max(stored.parameter.experts, 1) * bits // 8


def kv_room(model: LoadedModel, config: EngineConfig, num_neighbours: int = 1) -> KVRoom:
    """What the KV pool of this rank may take, now that its weights are in memory."""
    page = config.cache.block_size
    size = block_bytes(model.block_needs, page, model.kv_dtype.itemsize)
    context = requested_context(model.spec, config.model.max_model_len)
    context_bytes = planned_groups(model.spec, config).blocks_for(context) * size
    working = working_bytes(model, config)
    return KVRoom(size, cache_budget(config.cache, model.device, working, context_bytes, num_neighbours))


def working_bytes(model: LoadedModel, config: EngineConfig) -> int:
    """What a step takes beside weights and KV pool: measured on an accelerator, whose ranks all do so together."""
    limits, cache = config.scheduler, config.cache
    if model.device.type != "cuda" or cache.num_blocks is not None or cache.memory_bytes is not None:
        tokens, rows, share = limits.max_num_batched_tokens, limits.max_num_seqs, model.shard.share
        return step_bytes(model.spec, tokens, rows, model.dtype.itemsize, share) + attention_scratch(model)
    step = measure_step(model.device, rehearsal(model, config), lambda plan: rehearse(model, config, plan))
    return step + (graph_bytes(model, config) if model.replays_graphs else 0)


def graph_bytes(model: LoadedModel, config: EngineConfig) -> int:
    """What capturing the decode steps will take and keep: they are captured once the KV pool is there."""
    limits, context = config.scheduler, requested_context(model.spec, config.model.max_model_len)
    plan = decode_plan(limits, context, config.cache.block_size)
    shared = measure_step(model.device, plan, lambda plan: rehearse(model, config, plan))
    return shared + num_graphs(max_decodes(limits), context) * GRAPH_BYTES


def attention_scratch(model: LoadedModel) -> int:
    """What the backend's attention keeps to work in, beside the activations."""
    mixers = [model.spec.layers[index].mixer for index in model.shard.layers]
    paged = [each for each in mixers if isinstance(each, AttentionSpec)]
    sizes = {(each.num_heads, each.num_kv_heads, each.head_dim) for each in paged}
    return max((model.ops.attention_bytes(*each) for each in sizes), default=0)


def rehearsal(model: LoadedModel, config: EngineConfig) -> StepPlan:
    context = requested_context(model.spec, config.model.max_model_len)
    return largest_plan(config.scheduler, context, config.cache.block_size, model.spec.head is not None)


def rehearse(model: LoadedModel, config: EngineConfig, plan: StepPlan) -> StepResult:
    """Execute `plan` with a pool of no more blocks than it needs. A rank's peers must do the same."""
    return build_worker(model, num_blocks(plan), config.cache.block_size).execute(for_groups(plan, len(model.windows)))


@torch.inference_mode()
def build_worker(model: LoadedModel, num_blocks: int, block_size: int) -> Worker:
    """Allocates the KV pool. Raises StartupError when there is no memory for it."""
    return Worker(build_model(model, num_blocks, block_size), block_size, model.device, model.context)


@torch.inference_mode()
def build_device_worker(model: LoadedModel, plan: KVPlan, scheduler: SchedulerConfig) -> DeviceWorker:
    """Like build_worker, for ops that wait for nothing; on CUDA decode steps are captured, others tried."""
    decoder = build_model(model, plan.num_blocks, plan.block_size)
    graphs = DecodeGraphs(decoder, max_decodes(scheduler), plan.max_context, plan.block_size, model.device)
    worker = DeviceWorker(decoder, plan.block_size, model.device, graphs)
    if model.device.type != "cuda":
        return worker
    try:
        graphs.capture()
        for step in warm_up_plans(scheduler, plan.max_context, plan.block_size):
            worker.finish(worker.launch(for_groups(step, len(model.windows))))
    except torch.OutOfMemoryError:
        raise StartupError(
            f"{model.device} has too little memory beside the KV cache: lower --gpu-memory-utilization, or "
            f"--kv-cache-memory-bytes and --num-kv-blocks where they are set"
        ) from None
    return worker


def build_model(model: LoadedModel, num_blocks: int, block_size: int) -> Model:
    pools = allocate_caches(model.block_needs, (num_blocks, block_size), model.kv_dtype, model.device, model.ops)
    places = place_layers(model.cache_needs, model.windows)
    groups = LayerGroups(model.windows, tuple(place.group for place in places))
    caches = tuple(pools[place.layer] for place in places)
    return Model(model.spec, model.weights, caches, model.ops, model.dtype, model.context.tensor, groups)


def resolve_device(config: DeviceConfig, index: int = 0, num_local: int = 1) -> torch.device:
    """auto: accelerator number `index` if there is one, which becomes this thread's current device (kernels are
    launched and collectives run there). On a CPU torch gets config.threads, or the processors this process may use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.device == "cuda" and not count:
        raise StartupError("device cuda was asked for, but torch finds none")
    if config.device != "cpu" and count:
        if index >= count:
            raise StartupError(f"{num_local} ranks on a machine with {count} CUDA devices: one device each is needed")
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
        return device
    torch.set_num_threads(config.threads or usable_processors())
    return torch.device("cpu")


def rank_device(config: DeviceConfig, num_local: int) -> DeviceConfig:
    """`config` for one of num_local ranks of a machine: each computes with an even share of its threads."""
    share = max((config.threads or usable_processors()) // num_local, 1)
    return msgspec.structs.replace(config, threads=share)


def resolve_dtype(stated: str, device: torch.device, checkpoint: Checkpoint) -> str:
    """auto: float32 on a CPU, whose matrix units have no half precision in general; elsewhere the type of most of the
    checkpoint's bytes, bfloat16 for quantized ones."""
    if stated != "auto":
        return stated
    if device.type == "cpu":
        return "float32"
    return CHECKPOINT_DTYPES.get(dominant_format(checkpoint), "bfloat16")


def resolve_cache_dtype(stated: CacheDtype, model_dtype: torch.dtype, ops: Ops) -> torch.dtype:
    """auto: the model's; float16 in place of float32 where the attention computes in float32 from it. A step reads the
    keys and values of all its sequences, so half the bytes are up to half the time, and their rounding is far below
    that of quantized weights."""
    backend = ops.backends["paged_attention"]
    if stated == "auto":
        halved = backend.startswith("native") and model_dtype == torch.float32
        return torch.float16 if halved else model_dtype
    dtype = CACHE_DTYPES.get(stated)
    if dtype is None or dtype not in ops.cache_dtypes:
        held = ", ".join(name for name, known in CACHE_DTYPES.items() if known in ops.cache_dtypes)
        raise StartupError(f"kv-cache-dtype {stated}: kernel backend {backend} keeps {held} on this device")
    return dtype


def resolve_ops(config: DeviceConfig, device: torch.device) -> Ops:
    try:
        ops = load_ops(device.type, config.kernel_backend, config.threads)
    except ValueError as error:
        raise StartupError(str(error)) from None
    if ops.has_threads:
        torch.set_num_threads(1)  # the backend has threads of its own; two teams would spin against each other
    return ops


def dominant_format(checkpoint: Checkpoint) -> str:
    """The tensor format that holds most of the checkpoint's bytes."""
    sizes: Counter[str] = Counter()
    for record in checkpoint.tensors.values():
        sizes[record.format] += record.nbytes
    return sizes.most_common(1)[0][0]


def allocate_caches(
    needs: Sequence[CacheNeed | None],
    pages: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    ops: Ops,
) -> tuple[Cache | None, ...]:
    """A cache for each of these needs, of `pages` (blocks, tokens per block), with scales where values have 8 bits;
    memory is taken when first written."""
    try:
        return tuple(None if need is None else need.allocate(pages, dtype, device, ops) for need in needs)
    except ValueError as error:
        raise StartupError(f"kv-cache-dtype: {error}") from None
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise StartupError(f"the KV cache of {pages[0]} blocks cannot be allocated: {reason}") from None


def executor_info(model: LoadedModel, plan: KVPlan, pipeline_depth: int = 1, looks_ahead: bool = False) -> ExecutorInfo:
    return ExecutorInfo(
        architecture=model.spec.architecture,
        dtype=str(model.dtype).removeprefix("torch."),
        quantization=model.quantization,
        vocab_size=model.spec.vocab_size,
        max_context_tokens=plan.max_context,
        block_size=plan.block_size,
        num_blocks=plan.num_blocks,
        weight_bytes=model.weights.num_bytes,
        kv_bytes=plan.total_bytes,
        backends=dict(model.ops.backends),
        pipeline_depth=pipeline_depth,
        looks_ahead=looks_ahead,
        windows=plan.windows,
        is_pageable=model.device.type == "cpu",
    )
