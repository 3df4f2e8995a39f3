"""Every flag of every command, once: its name, the configuration field it sets, its help, its other spellings."""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import msgspec

from inferd.config import InferdConfig, Port, Timeout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One long flag. Type, bounds and default are those of `field`, a dotted path below InferdConfig.

    A flag without a field belongs to its command, which reads it by name; `type` and `default` are its own then.
    """

    name: str
    help: str
    field: str | None = None
    type: Any = str
    default: object = None
    aliases: tuple[str, ...] = ()  # as typed, dashes included
    size: bool = False  # 32k, 4GiB
    synonyms: Mapping[str, str | None] = dataclasses.field(default_factory=dict)  # typed word -> value; None: unset
    secret: bool = False  # never put on a child's command line

    @property
    def value_type(self) -> Any:
        return self.type if self.field is None else field_of(self.field).type

    @property
    def value_default(self) -> object:
        return self.default if self.field is None else field_of(self.field).default

    @property
    def is_switch(self) -> bool:
        return self.value_type is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.value_type) is tuple

    @property
    def is_object(self) -> bool:
        """Whether its value is JSON for a part of the configuration."""
        types = (self.value_type, *typing.get_args(self.value_type))
        return any(isinstance(each, type) and issubclass(each, msgspec.Struct) for each in types)

    @property
    def choices(self) -> tuple[str, ...]:
        """Of a Literal, or of one that may be left unset."""
        members = (self.value_type, *typing.get_args(self.value_type))
        return next((typing.get_args(kind) for kind in members if typing.get_origin(kind) is typing.Literal), ())


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    type: Any
    default: object


@functools.cache
def field_of(path: str) -> Field:
    """Type (bounds included) and default of a dotted path below InferdConfig."""
    owner: Any = InferdConfig
    *parents, name = path.split(".")
    for parent in parents:
        owner = typing.get_type_hints(owner)[parent]
    info = next(info for info in msgspec.structs.fields(owner) if info.name == name)
    return Field(typing.get_type_hints(owner, include_extras=True)[name], info.default)


MODEL = Flag(
    name="model",
    field="engine.model.source",
    help="checkpoint folder, .gguf file, hub id, or `demo`",
)
CONFIG = Flag(name="config", help="YAML file of long flags; the command line wins over it, it wins over INFERD_*")

SERVE_FLAGS = (
    CONFIG,
    # model
    Flag(name="served-model-name", field="server.served_model_names", help="names callers use; the first is reported"),
    Flag(name="revision", field="engine.model.revision", help="branch, tag or commit of a hub id"),
    Flag(
        name="dtype",
        field="engine.model.dtype",
        synonyms={"half": "float16", "float": "float32"},
        help="type of activations and of weights that are not quantized",
    ),
    Flag(
        name="quantization",
        aliases=("-q",),
        field="engine.model.quantization",
        help="quantize weights at load; q8: CPU alone, fp8: not there",
    ),
    Flag(
        name="max-model-len",
        field="engine.model.max_model_len",
        size=True,
        synonyms={"auto": None, "-1": None},
        help="longest prompt and output together, in tokens; auto: the model's, as far as the KV pool holds it",
    ),
    Flag(
        name="pooling",
        field="engine.model.pooling",
        help="how embeddings are made; auto: as the checkpoint says, and a decoder that says nothing makes none",
    ),
    Flag(name="chat-template", field="server.chat_template", help="Jinja file in place of the checkpoint's template"),
    Flag(
        name="generation-config",
        field="server.generation_config",
        synonyms={"vllm": "none"},
        help="sampling defaults: auto takes the checkpoint's, none (or vllm) the neutral ones",
    ),
    Flag(name="max-logprobs", field="server.limits.max_top_logprobs", help="largest logprobs count a request may ask"),
    Flag(name="seed", field="server.seed", help="makes the seeds of requests without one repeatable"),
    # scheduler
    Flag(name="max-num-seqs", field="engine.scheduler.max_num_seqs", size=True, help="sequences that run at once"),
    Flag(
        name="max-num-batched-tokens",
        field="engine.scheduler.max_num_batched_tokens",
        size=True,
        help="tokens one step may compute",
    ),
    Flag(
        name="enable-chunked-prefill",
        field="engine.scheduler.chunked_prefill",
        help="cut long prompts into chunks that share steps with running sequences",
    ),
    Flag(
        name="max-num-queued-reqs", field="engine.scheduler.max_waiting", help="requests that may wait; more: refused"
    ),
    Flag(
        name="queue-timeout",
        field="server.queue_timeout_s",
        help="seconds a request may wait to be scheduled, unless it says so itself",
    ),
    Flag(
        name="speculative-config",
        field="engine.scheduler.speculative",
        synonyms={"ngram": '{"method": "ngram"}', "none": None},
        help="ngram, or JSON with num_speculative_tokens, prompt_lookup_min and _max: guess tokens by prompt lookup",
    ),
    # KV cache
    Flag(name="block-size", field="engine.cache.block_size", help="tokens per KV block"),
    Flag(name="enable-prefix-caching", field="engine.cache.prefix_caching", help="reuse KV blocks of equal prefixes"),
    Flag(
        name="gpu-memory-utilization",
        field="engine.cache.memory_utilization",
        help="share of the accelerator's memory to use, weights included",
    ),
    Flag(
        name="kv-cache-memory-bytes",
        field="engine.cache.memory_bytes",
        size=True,
        help="size of the KV pool, e.g. 4GiB; unset: from free memory; on a CPU 1GiB, or one context if that is more",
    ),
    Flag(
        name="kv-cache-dtype",
        field="engine.cache.dtype",
        synonyms={"fp8_e4m3": "fp8"},
        help="auto: that of the activations, float16 for float32 ones on a CPU; fp8 (e4m3) and int8, scaled per token "
        "and head, where the kernel backend keeps them",
    ),
    Flag(
        name="num-kv-blocks",
        aliases=("--num-gpu-blocks-override",),
        field="engine.cache.num_blocks",
        size=True,
        help="size of the KV pool in blocks; wins over --kv-cache-memory-bytes",
    ),
    # parallelism
    Flag(
        name="tensor-parallel-size",
        aliases=("-tp",),
        field="engine.parallel.tensor_parallel_size",
        help="workers that split every layer",
    ),
    Flag(
        name="pipeline-parallel-size",
        aliases=("-pp",),
        field="engine.parallel.pipeline_parallel_size",
        help="workers that split the layers among them",
    ),
    Flag(
        name="distributed-executor-backend",
        field="engine.parallel.backend",
        synonyms={"mp": "multiprocess", "uni": "local"},
        help="who starts the workers",
    ),
    Flag(
        name="step-timeout",
        field="engine.parallel.step_timeout_s",
        help="seconds after which a step counts as hung; the workers are then ended and started again",
    ),
    Flag(name="nnodes", field="engine.parallel.nnodes", help="machines of this model"),
    Flag(name="node-rank", field="engine.parallel.node_rank", help="this machine's number among them"),
    Flag(name="master-addr", field="engine.parallel.master_addr", help="address of machine 0"),
    Flag(name="master-port", field="engine.parallel.master_port", help="port of the workers' rendezvous there"),
    # device
    Flag(name="device", field="engine.device.device", help="where the model runs"),
    Flag(name="kernel-backend", field="engine.device.kernel_backend", help="kernels to use; auto: fastest per op"),
    Flag(name="threads", field="engine.device.threads", help="CPU compute threads; unset: every core we may use"),
    # server
    Flag(name="host", field="server.host", help="address to listen on"),
    Flag(name="port", aliases=("--grpc-port",), field="server.port", help="gRPC port; 0: the system chooses"),
    Flag(name="metrics-port", field="server.metrics_port", synonyms={"off": None}, help="Prometheus port; off: none"),
    Flag(name="api-key", field="server.api_keys", secret=True, help="keys callers must send; better in INFERD_API_KEY"),
    Flag(
        name="api-key-file",
        field="server.api_key_file",
        help="file of keys, one a line: KEY or SCOPE:KEY, SCOPE being infer, admin or observe; # starts a comment",
    ),
    Flag(name="tls-cert", field="server.tls_cert", help="PEM certificate chain; the gRPC ports then speak TLS only"),
    Flag(name="tls-key", field="server.tls_key", help="PEM private key of --tls-cert"),
    Flag(
        name="tls-client-ca",
        field="server.tls_client_ca",
        help="PEM authority; callers must show a certificate that it signed",
    ),
    Flag(
        name="admin-listen",
        field="server.admin_listen",
        help="where AdminService listens: HOST:PORT or unix:PATH; unset: nowhere",
    ),
    Flag(
        name="admin-api-key",
        field="server.admin_api_keys",
        secret=True,
        help="keys of AdminService; better in INFERD_ADMIN_API_KEY",
    ),
    Flag(name="insecure", type=bool, default=False, help="listen on a public address without a key"),
    Flag(name="enable-reflection", field="server.reflection", help="gRPC server reflection"),
    Flag(
        name="drain-timeout",
        aliases=("--shutdown-timeout",),
        field="server.drain_timeout_s",
        help="seconds that running requests get after SIGTERM",
    ),
    # log
    Flag(
        name="log-level",
        aliases=("--uvicorn-log-level",),
        field="engine.log_level",
        help="least severe records to log",
    ),
    Flag(name="log-format", field="engine.log_format", help="text lines or JSON objects"),
)

HEALTH_FLAGS = (
    CONFIG,
    Flag(name="backend", default="127.0.0.1:50051", help="HOST:PORT of the daemon"),
    Flag(
        name="service",
        default="inferd.v1.InferenceService",
        help="health service to ask for; '' asks only whether the process lives",
    ),
    Flag(name="timeout", type=Timeout, default=5.0, help="seconds to wait for an answer"),
)

# Flags of inferd-gateway that `inferd up` hands on.
GATEWAY_FLAGS = (
    Flag(name="port", type=Port, default=8000, help="HTTP port"),
    Flag(name="strict-params", type=bool, default=False, help="refuse HTTP fields that nobody knows"),
    Flag(name="allowed-origins", type=tuple[str, ...], default=(), help="origins that browsers may call from"),
    Flag(
        name="chat-template-content-format",
        type=Literal["auto", "string", "openai"],
        default="auto",
        help="how the template wants message content: one string, or a list of parts",
    ),
    Flag(
        name="tool-call-parser",
        type=Literal[
            "auto",
            "none",
            "hermes",
            "qwen3_json",
            "qwen3_xml",
            "qwen3_coder",
            "llama3_json",
            "mistral",
            "pythonic",
            "deepseek_v3",
        ],
        default="auto",
        help="parser of the model's tool calls; auto: detected from its chat template",
    ),
    Flag(
        name="reasoning-parser",
        type=Literal["auto", "none", "deepseek_r1", "qwen3", "mistral"],
        default="auto",
        help="splits reasoning from the answer; auto: detected from the chat template",
    ),
    Flag(
        name="enable-auto-tool-choice",
        type=bool,
        default=True,
        help="accepted: tools may always be called where a parser is known",
    ),
    Flag(name="request-timeout", type=Timeout, default=600.0, help="seconds one HTTP request may take"),
    Flag(name="access-log", type=bool, default=True, help="log one line per HTTP request"),
)

# Flags of the daemon that the gateway has too, and what it calls them. Keys go by environment.
SHARED_WITH_GATEWAY = MappingProxyType(
    {
        "host": "host",
        "api-key-file": "api-key-file",
        "insecure": "insecure",
        "drain-timeout": "shutdown-timeout",
        "log-level": "uvicorn-log-level",
        "log-format": "log-format",
    }
)

UP_FLAGS = (
    *(flag for flag in SERVE_FLAGS if flag.name != "port"),
    Flag(name="grpc-port", field="server.port", help="gRPC port"),
    *GATEWAY_FLAGS,
)
