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
    }
)
