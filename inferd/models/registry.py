"""From config.json to a model family, and whether a checkpoint has what that family needs. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import Any

from inferd.checkpoint import Checkpoint, GgufVocabulary, TensorRecord
from inferd.errors import StartupError
from inferd.models.spec import DecoderSpec
from inferd.models.weights import Rule

# Architecture -> module with spec_from_hf and weight_rules; then model_type, for files that name no architecture.
MODELS: Mapping[str, str] = MappingProxyType(
    {
        "LlamaForCausalLM": "inferd.models.llama",
        "MistralForCausalLM": "inferd.models.mistral",
        "Qwen2ForCausalLM": "inferd.models.qwen2",
        "Qwen3ForCausalLM": "inferd.models.qwen3",
        "GPT2LMHeadModel": "inferd.models.gpt2",
        "OPTForCausalLM": "inferd.models.opt",
    }
)
MODEL_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "gpt2": "GPT2LMHeadModel",
        "opt": "OPTForCausalLM",
    }
)
# Tensors that some writers store beside the parameters and that are computed here.
IGNORED = re.compile(
    r"(.*\.)?rotary_emb\.inv_freq|model\.layers\.\d+\.self_attn\.rotary_emb\..*|(transformer\.)?h\.\d+\.attn\.(masked_)?bias"
)


@dataclass(frozen=True, slots=True)
class Family:
    spec_from_hf: Callable[[Mapping[str, Any]], DecoderSpec]
    weight_rules: Callable[[DecoderSpec], tuple[Rule, ...]]


def family(config: Mapping[str, Any]) -> Family:
    """The model family that config.json names. StartupError lists the supported ones."""
    stated = list(config.get("architectures") or [])
    if not stated and config.get("model_type") in MODEL_TYPES:
        stated = [MODEL_TYPES[str(config["model_type"])]]
    for name in stated:
        if name in MODELS:
            module = import_module(MODELS[name])
            return Family(module.spec_from_hf, module.weight_rules)
    given = ", ".join(map(str, stated)) or config.get("model_type") or "none named"
    raise StartupError(f"architecture {given} is not supported; supported: {', '.join(sorted(MODELS))}")


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    return family(config).spec_from_hf(config)


def weight_rules(spec: DecoderSpec) -> tuple[Rule, ...]:
    return family({"architectures": [spec.architecture]}).weight_rules(spec)


def check_checkpoint(checkpoint: Checkpoint) -> DecoderSpec:
    """The spec, once every tensor is known to be there in its shape and nothing that would change results is left over.

    Raises StartupError naming the first missing, misshapen or unknown tensors.
    """
    spec = decoder_spec(checkpoint.config)
    expected: dict[str, tuple[int, ...]] = {}
    for rule in weight_rules(spec):
        for layer in range(spec.num_layers if rule.per_layer else 1):
            expected[rule.source.format(layer=layer)] = rule.stored_shape
    tensors = canonical_names(checkpoint.tensors, expected)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise StartupError(f"{checkpoint.path}: tensor {missing[0]} is missing{_and_more(missing)}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise StartupError(f"{checkpoint.path}: tensor {name} has shape {tensors[name].shape}, expected {shape}")
    optional = {"lm_head.weight"} if spec.tied_embeddings else set()
    unknown = [name for name in tensors if name not in expected and name not in optional and not IGNORED.match(name)]
    if unknown:
        raise StartupError(
            f"{checkpoint.path}: {spec.architecture} has no tensor {sorted(unknown)[0]}{_and_more(unknown)}"
        )
    _check_tokenizer(checkpoint, spec)
    return spec


def canonical_names(tensors: Mapping[str, TensorRecord], expected: Iterable[str]) -> dict[str, TensorRecord]:
    """The tensors under the names of a model with a head: files written from the bare model lack the first component
    (`h.0.ln_1.weight` for `transformer.h.0.ln_1.weight`)."""
    shortened = {name.partition(".")[2]: name for name in expected}
    return {name if name in expected else shortened.get(name, name): record for name, record in tensors.items()}


def find_tensor(tensors: Mapping[str, TensorRecord], name: str) -> TensorRecord:
    """A tensor of a checked checkpoint, by its name in a model with a head."""
    return tensors[name] if name in tensors else tensors[name.partition(".")[2]]


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""


def _check_tokenizer(checkpoint: Checkpoint, spec: DecoderSpec) -> None:
    """A token id of the tokenizer must be a row of the embedding. tokenizer.json is checked by who parses it."""
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, GgufVocabulary) and len(tokenizer.tokens) > spec.vocab_size:
        raise StartupError(
            f"{checkpoint.path}: the tokenizer has {len(tokenizer.tokens)} tokens, the embedding {spec.vocab_size} rows"
        )
