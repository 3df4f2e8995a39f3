"""Flags of `vllm serve` that have no effect here, and some that cannot have one: what we answer to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class NoEffect:
    """An accepted flag that changes nothing; `answer` is logged once."""

    answer: str
    takes_value: bool = False


NO_EFFECT: Mapping[str, NoEffect] = MappingProxyType(
    {
        "trust-remote-code": NoEffect("code from a checkpoint is never executed, with or without it"),
        "enforce-eager": NoEffect("the engine core decides by itself how a step is launched"),
        "async-scheduling": NoEffect("scheduling is the engine core's business"),
        "disable-log-requests": NoEffect("prompts and outputs are not logged anyway"),
        "disable-log-stats": NoEffect("figures are served on the metrics port, not logged"),
        "max-log-len": NoEffect("prompts and outputs are not logged anyway", takes_value=True),
        "scheduling-policy": NoEffect("requests run by (priority, deadline, arrival), highest first", takes_value=True),
        "swap-space": NoEffect("a preempted sequence is recomputed, not swapped", takes_value=True),
        "use-v2-block-manager": NoEffect("there is one block manager"),
        "enable-prompt-tokens-details": NoEffect("cached prompt tokens are always reported"),
        "runner": NoEffect("a model serves every task that its checkpoint can do", takes_value=True),
        "convert": NoEffect("a model serves every task that its checkpoint can do; see --pooling", takes_value=True),
        "enable-request-id-headers": NoEffect("x-request-id is always echoed"),
        "enable-server-load-tracking": NoEffect("/load and WatchLoad are always there"),
        "prefix-caching-hash-algo": NoEffect("there is one hash of prefixes", takes_value=True),
        "compilation-config": NoEffect("the engine core decides by itself how a step is launched", takes_value=True),
        "performance-mode": NoEffect("see --max-num-seqs and --max-num-batched-tokens", takes_value=True),
        "disable-fastapi-docs": NoEffect("there is no page of docs, only /openapi.json"),
        "grpc": NoEffect("gRPC is always served"),
        "headless": NoEffect("a node other than 0 serves nothing anyway"),
    }
)

NOT_SUPPORTED: Mapping[str, str] = MappingProxyType(
    {
        "tokenizer": "the tokenizer is the checkpoint's own",
        "pooler-config": "say how embeddings are made with --pooling",
        "load-format": "the format is read from the checkpoint: safetensors or GGUF",
        "hf-token": "set HF_TOKEN in the environment",
        "enable-lora": "adapters are not supported",
        "lora-modules": "adapters are not supported",
        "data-parallel-size": "start several daemons behind one gateway",
        "dp": "start several daemons behind one gateway",
        "api-server-count": "start several inferd-gateway in front of the daemon",
        "enable-expert-parallel": "experts are split over tensor-parallel ranks; whole experts are not placed on ranks",
        "ep": "experts are split over tensor-parallel ranks; whole experts are not placed on ranks",
        "cpu-offload-gb": "weights are not moved between memories",
        "kv-offloading-size": "KV blocks are not moved between memories",
        "kv-transfer-config": "KV blocks do not leave their engine",
        "enable-sleep-mode": "stop the daemon; it starts in seconds",
        "model-impl": "every model is implemented here",
        "hf-overrides": "config.json is taken as it is",
        "download-dir": "set HF_HOME in the environment",
        "tokenizer-mode": "the tokenizer is the checkpoint's own",
        "skip-tokenizer-init": "requests may send and ask for token ids alone",
        "override-generation-config": "use --generation-config none, and parameters of requests",
        "default-chat-template-kwargs": "requests send chat_template_kwargs",
        "trust-request-chat-template": "a request cannot bring a template",
        "structured-outputs-config": "there is one library for constraints",
        "logits-processors": "no code is loaded for a flag",
        "middleware": "no code is loaded for a flag",
        "logprobs-mode": "log probabilities are the model's own, before penalties and temperature",
        "return-tokens-as-token-ids": "requests ask for it by that name",
        "enable-force-include-usage": "requests ask for it with stream_options",
        "stream-interval": "over gRPC, requests have stream.max_delay or a single message",
        "limit-mm-per-prompt": "inputs are text",
        "max-num-queued-tokens": "the queue is bounded by --max-num-queued-reqs",
        "long-prefill-token-threshold": "a step is bounded by --max-num-batched-tokens",
        "enable-log-requests": "prompts and outputs are never logged",
        "enable-log-outputs": "prompts and outputs are never logged",
        "disable-uvicorn-access-log": "use --no-access-log",
        "otlp-traces-endpoint": "trace ids are passed on and logged; spans are not exported",
        "sse-keep-alive-interval": "use --sse-keepalive of inferd-gateway, or INFERD_GATEWAY_SSE_KEEPALIVE",
        "ssl-certfile": "gRPC has --tls-cert; for HTTPS run inferd-gateway apart, with --ssl-certfile",
        "ssl-keyfile": "gRPC has --tls-key; for HTTPS run inferd-gateway apart, with --ssl-keyfile",
        "ssl-ca-certs": "gRPC has --tls-client-ca; for HTTPS run inferd-gateway apart, with --ssl-ca-certs",
        "root-path": "let the proxy in front cut the prefix",
        "uds": "HTTP is served over TCP",
    }
)
