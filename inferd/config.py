"""Configuration as values: frozen, resolved at start, sent whole to the engine core; inferd.cli makes flags of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
CacheDtype = Literal["auto", "float32", "bfloat16", "float16", "fp8", "int8"]
Quantization = Literal["q4", "q8", "fp8"]
Pooling = Literal["auto", "mean", "cls", "last"]

# Every number has both bounds: beyond them some call, kernel or message cannot hold it. NaN and infinity are outside.
MAX_SECONDS = 30 * 86400.0
Positive = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Workers = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Bytes = Annotated[int, msgspec.Meta(ge=1, le=2**50)]
Seed = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]  # 0: the system chooses
FixedPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
Timeout = Annotated[float, msgspec.Meta(ge=0.1, le=MAX_SECONDS)]  # what nothing could finish within is none
Utilization = Annotated[float, msgspec.Meta(gt=0, le=1)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Temperature = Annotated[float, msgspec.Meta(ge=0, le=2)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
LogLevel = Literal["debug", "info", "warning", "error", "critical"]


def number(kind: Any) -> Callable[[str], Any]:
    """What argparse calls to read a number of an annotated type."""

    def read(text: str) -> Any:
        try:
            return msgspec.convert(text, kind, strict=False)
        except msgspec.ValidationError as error:
            raise argparse.ArgumentTypeError(f"{str(error).lower().replace('`', '')}; got {text!r}") from None

    return read


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Which checkpoint, and how to hold it."""

    source: str  # what the user typed: a folder, a .gguf file, a hub id or `demo`
    path: str  # the local folder or .gguf file it resolved to
    revision: str | None = None
    dtype: Dtype = "auto"
    quantization: Quantization | None = None  # quantize float matrices at load
    pooling: Pooling = "auto"  # of embeddings; auto: as the checkpoint says, and a decoder that says nothing has none
    max_model_len: Positive | None = None  # None: the model's own, clamped to what the KV pool holds


class CacheConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The paged KV pool. num_blocks wins over memory_bytes; with neither the pool is sized from free memory."""

    block_size: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 16
    num_blocks: Positive | None = None
    memory_bytes: Bytes | None = None
    memory_utilization: Utilization = 0.9  # of the accelerator's memory, weights included
    prefix_caching: bool = True
    dtype: CacheDtype = "auto"


class SpeculativeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Guesses of the next tokens by prompt lookup: runs of prompt_lookup_min to _max tokens that occurred before."""

    method: Literal["ngram"] = "ngram"
    num_speculative_tokens: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8  # at most, in a step
    prompt_lookup_min: Annotated[int, msgspec.Meta(ge=1, le=16)] = 2
    prompt_lookup_max: Annotated[int, msgspec.Meta(ge=1, le=16)] = 4

    def __post_init__(self) -> None:
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ValueError(f"prompt_lookup_min {self.prompt_lookup_min} is above _max {self.prompt_lookup_max}")


class SchedulerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one step and of the waiting queue. max_* of None are resolved from the device."""

    max_num_seqs: Positive = 64
    max_num_batched_tokens: Positive = 512
    chunked_prefill: bool = True
    max_waiting: Positive = 256
    speculative: SpeculativeConfig | None = None  # None: no guesses


class ParallelConfig(msgspec.Struct, frozen=True, kw_only=True):
    tensor_parallel_size: Workers = 1
    pipeline_parallel_size: Workers = 1
    backend: Literal["auto", "local", "multiprocess", "ray"] = "auto"
    nnodes: Workers = 1
    node_rank: Annotated[int, msgspec.Meta(ge=0, lt=4096)] = 0
    master_addr: str = "127.0.0.1"
    master_port: Port = 29501
    step_timeout_s: Timeout = 30.0

    @property
    def world_size(self) -> int:
        return self.tensor_parallel_size * self.pipeline_parallel_size


class DeviceConfig(msgspec.Struct, frozen=True, kw_only=True):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    kernel_backend: str = "auto"
    threads: Threads | None = None  # CPU compute threads; None: every core of the affinity mask


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the engine core needs; its first message."""

    model: ModelConfig
    cache: CacheConfig = CacheConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    parallel: ParallelConfig = ParallelConfig()
    device: DeviceConfig = DeviceConfig()
    load_timeout_s: Timeout = 600.0  # a core that loads and reports no progress for so long hangs
    log_level: LogLevel = "info"
    log_format: Literal["text", "json"] = "text"


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds on one request, checked before it costs anything; published by GetModelInfo."""

    max_choices: Positive = 16
    max_top_logprobs: Count = 20
    max_logprob_token_ids: Positive = 64
    max_stop_strings: Positive = 64
    max_stop_bytes: Positive = 8192
    max_stop_token_ids: Positive = 128
    max_logit_bias: Positive = 300
    max_allowed_token_ids: Positive = 1024
    max_bad_words: Positive = 64
    max_bad_word_tokens: Positive = 512
    max_schema_bytes: Positive = 64 * 1024  # of a JSON schema, grammar, structural tag or list of choices
    max_regex_bytes: Positive = 4096
    max_batch_inputs: Positive = 256
    max_stream_items: Positive = 64  # of a bulk stream, in work at the same time
    max_message_bytes: Positive = 4 * 1024 * 1024
    max_salt_chars: Positive = 128
    max_request_id_chars: Positive = 128
    max_deadline_s: Timeout = 600.0


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The front: where it listens, whom it lets in, how it ends."""

    host: str = "127.0.0.1"
    port: Port = 50051
    metrics_port: Port | None = 9400
    served_model_names: tuple[str, ...] = ()
    chat_template: str | None = None  # a file that replaces the checkpoint's template
    generation_config: Literal["auto", "none"] = "auto"  # sampling defaults: the checkpoint's, or the neutral ones
    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = (
        None  # of the generator that draws seeds for requests without one
    )
    api_keys: tuple[str, ...] = ()
    api_key_file: str | None = None  # lines `key` or `scope:key`
    tls_cert: str | None = None  # PEM files
    tls_key: str | None = None
    tls_client_ca: str | None = None  # callers must show a certificate of this authority
    admin_listen: str | None = None  # HOST:PORT or unix:PATH of AdminService; None: not served
    admin_api_keys: tuple[str, ...] = ()
    reflection: bool = True
    drain_timeout_s: Seconds = 30.0
    drain_settle_s: Seconds = 2.0
    queue_timeout_s: Timeout | None = None
    stall_timeout_s: Timeout = 30.0
    limits: Limits = Limits()


class InferdConfig(msgspec.Struct, frozen=True, kw_only=True):
    engine: EngineConfig
    server: ServerConfig = ServerConfig()
