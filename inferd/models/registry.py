"""From config.json to a model family, and whether a checkpoint has what that family needs. Loads no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeAlias

from inferd.checkpoint import Checkpoint, GgufVocabulary, TensorRecord
from inferd.errors import StartupError
from inferd.models import bert
from inferd.models.encoder_spec import EncoderSpec
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
# Decoders saved without their head, as embedding models are: they embed, and generate nothing.
HEADLESS: Mapping[str, str] = MappingProxyType(
    {
        "LlamaModel": "LlamaForCausalLM",
        "MistralModel": "MistralForCausalLM",
        "Qwen2Model": "Qwen2ForCausalLM",
        "Qwen3Model": "Qwen3ForCausalLM",
        "GPT2Model": "GPT2LMHeadModel",
        "OPTModel": "OPTForCausalLM",
    }
)
# Encoders: they embed or score, and generate nothing.
ENCODERS = ("BertModel", bert.CLASSIFIER)
MODEL_TYPES: Mapping[str, str] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "bert": "BertModel",
        "gpt2": "GPT2LMHeadModel",
        "opt": "OPTForCausalLM",
    }
)
# Tensors that some writers store beside the parameters and that are computed here.
IGNORED = re.compile(
    r"(.*\.)?rotary_emb\.inv_freq|model\.layers\.\d+\.self_attn\.rotary_emb\..*|(transformer\.)?h\.\d+\.attn\.(masked_)?bias"
)
# An encoder that only embeds computes neither its pooler nor stored position numbers.
ENCODER_IGNORED = re.compile(r"(bert\.)?embeddings\.(position_ids|token_type_ids)|pooler\.dense\.(weight|bias)")


ModelSpec: TypeAlias = DecoderSpec | EncoderSpec


@dataclass(frozen=True, slots=True)
class Family:
    spec_from_hf: Callable[[Mapping[str, Any]], DecoderSpec]
    weight_rules: Callable[[DecoderSpec], tuple[Rule, ...]]


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture that config.json names. StartupError lists the supported ones."""
    stated = list(config.get("architectures") or [])
    if not stated and config.get("model_type") in MODEL_TYPES:
        stated = [MODEL_TYPES[str(config["model_type"])]]
    supported = (*MODELS, *HEADLESS, *ENCODERS)
    for name in stated:
        if name in supported:
            return str(name)
    given = ", ".join(map(str, stated)) or config.get("model_type") or "none named"
    raise StartupError(f"architecture {given} is not supported; supported: {', '.join(sorted(supported))}")


def family(architecture: str) -> Family:
    module = import_module(MODELS[HEADLESS.get(architecture, architecture)])
    return Family(module.spec_from_hf, module.weight_rules)


def decoder_spec(config: Mapping[str, Any]) -> DecoderSpec:
    """Raises StartupError for what is no decoder that is supported."""
    spec = model_spec(config)
    if not isinstance(spec, DecoderSpec):
        raise StartupError(f"architecture {spec.architecture} is an encoder; a decoder was expected")
    return spec


def model_spec(config: Mapping[str, Any]) -> ModelSpec:
    """The model that config.json describes. Raises StartupError."""
    architecture = architecture_of(config)
    if architecture in ENCODERS:
        return bert.spec_from_hf(config, architecture)
    spec = family(architecture).spec_from_hf(config)
    if architecture in HEADLESS:
        return replace(spec, architecture=architecture, has_head=False, tied_embeddings=False)
    return spec


def weight_rules(spec: ModelSpec) -> tuple[Rule, ...]:
    if isinstance(spec, EncoderSpec):
        return bert.weight_rules(spec)
    rules = family(spec.architecture).weight_rules(spec)
    return rules if spec.has_head else tuple(rule for rule in rules if rule.target != "lm_head")


def check_checkpoint(checkpoint: Checkpoint) -> ModelSpec:
    """The spec, once every tensor is known to be there in its shape and nothing that would change results is left over.

    Raises StartupError naming the first missing, misshapen or unknown tensors.
    """
    spec = model_spec(checkpoint.config)
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
    unknown = [name for name in tensors if name not in expected and not is_ignored(name, spec)]
    if unknown:
        raise StartupError(
            f"{checkpoint.path}: {spec.architecture} has no tensor {sorted(unknown)[0]}{_and_more(unknown)}"
        )
    _check_tokenizer(checkpoint, spec)
    return spec


def is_ignored(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that no rule asks for may be there."""
    if isinstance(spec, EncoderSpec):
        return ENCODER_IGNORED.fullmatch(name) is not None
    needs_no_head = spec.tied_embeddings or not spec.has_head
    return bool(IGNORED.match(name)) or (needs_no_head and name == "lm_head.weight")


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


def _check_tokenizer(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """A token id of the tokenizer must be a row of the embedding. tokenizer.json is checked by who parses it."""
    tokenizer = checkpoint.tokenizer
    if isinstance(tokenizer, GgufVocabulary) and len(tokenizer.tokens) > spec.vocab_size:
        raise StartupError(
            f"{checkpoint.path}: the tokenizer has {len(tokenizer.tokens)} tokens, the embedding {spec.vocab_size} rows"
        )
