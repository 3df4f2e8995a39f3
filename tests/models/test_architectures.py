"""Every registered architecture, as a tiny random checkpoint, gives transformers' logits however the tokens are cut."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from inferd.models.model import Model
from inferd.models.registry import all_families, decoder_spec
from inferd.testing.model_rows import rows_of_positions

SIZES: dict[str, Any] = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 64}
TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
PHI3: dict[str, Any] = TOKENS | {"pad_token_id": 0}
QWEN3_MOE: dict[str, Any] = {"head_dim": 12, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT: dict[str, Any] = {
    "num_key_value_heads": 6,
    "q_lora_rank": 20,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 5.0, 7.0],
}
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama-tied-biased": (LlamaConfig, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-no-gqa-head-dim": (LlamaConfig, {"num_key_value_heads": 6, "head_dim": 10}),
    "llama3-rope": (LlamaConfig, {"rope_parameters": LLAMA3}),
    "linear-rope": (LlamaConfig, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
    "mistral-window": (MistralConfig, {"sliding_window": 20}),
    "mistral-full": (MistralConfig, {"sliding_window": None}),
    "qwen2": (Qwen2Config, {}),
    "qwen2-tied-mixed-windows": (
        Qwen2Config,
        {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen2-yarn": (Qwen2Config, {"rope_parameters": YARN}),
    "qwen3": (Qwen3Config, {"head_dim": 12}),
    "qwen3-tied": (Qwen3Config, {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": (GemmaConfig, {"head_dim": 12}),
    "gemma2": (Gemma2Config, {"head_dim": 12, "sliding_window": 9, "query_pre_attn_scalar": 16}),
    "gemma3": (
        Gemma3TextConfig,
        {"head_dim": 8, "sliding_window": 9, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]},
    ),
    "phi3": (Phi3Config, PHI3),
    "phi3-partial": (
        Phi3Config,
        PHI3 | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "phi3-short-of-longrope": (
        Phi3Config,
        PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
    ),
    "phi3-longrope": (Phi3Config, PHI3 | {"rope_parameters": LONGROPE, "original_max_position_embeddings": 8}),
    "mixtral": (MixtralConfig, {"num_local_experts": 5}),
    "qwen3-moe": (Qwen3MoeConfig, QWEN3_MOE | {"norm_topk_prob": True}),
    "qwen3-moe-some-layers": (Qwen3MoeConfig, QWEN3_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [2]}),
    "deepseek-v2": (DeepseekV2Config, LATENT | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek-v2-groups": (DeepseekV2Config, LATENT | {"topk_method": "group_limited_greedy"}),
    "deepseek-v3": (DeepseekV3Config, LATENT),
    "deepseek-v3-yarn": (DeepseekV3Config, LATENT | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}}),
    "gpt-oss": (GptOssConfig, {"head_dim": 8, "num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 9}),
    "gpt2": (GPT2Config, TOKENS),
    "gpt2-untied-inner": (
        GPT2Config,
        TOKENS | {"n_inner": 100, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    "opt": (OPTConfig, {"ffn_dim": 80, "word_embed_proj_dim": 48}),
    "opt-galactica": (
        OPTConfig,
        {"ffn_dim": 80, "word_embed_proj_dim": 48, "activation_function": "gelu", "tie_word_embeddings": False},
    ),
}
# Of the families of decoders; a family of encoders has no bare form beside its own.
DECODERS = {name for family in all_families() if family.headless for name in family.architectures}
HEADLESS = {name for family in all_families() for name in family.headless}
PROMPTS = torch.randint(0, 160, (2, 70), generator=torch.Generator().manual_seed(5)).tolist()


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, load_decoder: Callable[[Path], Model]
) -> tuple[Model, list[torch.Tensor]]:
    """The decoder, and transformers' logits of both prompts."""
    config_class, changes = CASES[request.param]
    torch.manual_seed(0)
    config = config_class(**(SIZES | changes))
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.15)
        logits = [model(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]
    path = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(path)
    return load_decoder(path), logits


def forward(decoder: Model, prompts: list[list[int]], chunk: int) -> list[torch.Tensor]:
    """Logits of every position, as `rows_of_positions`."""
    return rows_of_positions(decoder, decoder.logits, prompts, chunk)


def test_cases_cover_the_registry() -> None:
    covered = {decoder_spec(config_class(**(SIZES | changes)).to_dict() | _named(config_class)).architecture
               for config_class, changes in CASES.values()}  # fmt: skip
    assert covered == {name for name in DECODERS if name.endswith(("ForCausalLM", "LMHeadModel"))}


def _named(config_class: type) -> dict[str, Any]:
    suffix = "LMHeadModel" if config_class is GPT2Config else "ForCausalLM"
    return {"architectures": [config_class.__name__.replace("Text", "").replace("Config", suffix)]}


@pytest.mark.parametrize("chunk", [70, 16, 1], ids=["whole", "chunks-of-16", "token-by-token"])
@pytest.mark.parametrize("batched", [False, True], ids=["alone", "batched"])
def test_logits_equal_transformers(case: tuple[Model, list[torch.Tensor]], chunk: int, batched: bool) -> None:
    decoder, expected = case
    count = 2 if batched else 1
    for ours, theirs in zip(forward(decoder, PROMPTS[:count], chunk), expected[:count], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_prompts_of_unequal_length_share_a_step(case: tuple[Model, list[torch.Tensor]]) -> None:
    decoder, expected = case
    ours = forward(decoder, [PROMPTS[0][:3], PROMPTS[1]], 24)
    torch.testing.assert_close(ours[0], expected[0][:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours[1], expected[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_bare_models_give_the_hidden_states_of_transformers(
    name: str, tmp_path: Path, load_decoder: Callable[[Path], Model]
) -> None:
    """Saved without a head the tensors' names lack their first component, and there is nothing to make logits of."""
    config_class, changes = CASES[name]
    torch.manual_seed(0)
    config = config_class(**(SIZES | changes))
    config._attn_implementation = "eager"
    model = AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.15)
        expected = [model(torch.tensor([prompt])).last_hidden_state[0] for prompt in PROMPTS]
    model.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    assert decoder.spec.architecture in HEADLESS
    assert decoder.weights.head is None
    for ours, theirs in zip(rows_of_positions(decoder, decoder.hidden, PROMPTS, 16), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_every_architecture_may_be_bare() -> None:
    assert len(HEADLESS) == len(DECODERS)


@pytest.mark.parametrize(
    "name", [name for name, (kind, _) in CASES.items() if kind not in (GPT2Config, OPTConfig, Gemma3TextConfig)]
)
def test_both_config_styles_give_one_spec(name: str) -> None:
    """transformers 4 wrote rope_theta and rope_scaling, and no layer_types; 5 writes rope_parameters."""
    config_class, changes = CASES[name]
    new_style = json.loads(json.dumps(config_class(**(SIZES | changes)).to_dict())) | _named(config_class)
    old_style = dict(new_style)
    parameters = dict(old_style.pop("rope_parameters"))
    old_style.pop("layer_types", None)
    old_style["rope_theta"] = parameters.pop("rope_theta")
    kind = parameters.pop("rope_type")
    if (fraction := parameters.pop("partial_rotary_factor", None)) is not None:
        old_style["partial_rotary_factor"] = fraction
    old_style["rope_scaling"] = None if kind == "default" else {"type": kind, **parameters}
    assert decoder_spec(old_style) == decoder_spec(new_style)
