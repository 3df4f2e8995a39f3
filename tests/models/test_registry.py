"""config.json and tensor lists that cannot be served are refused in one line that names what is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferd.blocks.rope import DivisorScaling, RopeSpec, YarnScaling
from inferd.checkpoint import Checkpoint, TensorRecord, TokenizerFiles
from inferd.errors import StartupError
from inferd.models.names import HF_NAMES
from inferd.models.registry import check_checkpoint, decoder_spec
from inferd.models.spec import HeadSpec, ModelSpec
from inferd.models.stored import stored_tensors

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["MambaForCausalLM"]},
            "MambaForCausalLM is not supported; supported: BertForSequenceClassification, BertModel, Deepseek",
        ),
        ({"architectures": None}, "none named is not supported"),
        ({"architectures": None, "model_type": "t5"}, "t5 is not supported"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"vocab_size": -5}, "vocab_size is -5, not a positive integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is no multiple of num_key_value_heads 3"),
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh'"),
        ({"rope_theta": float("nan")}, "rope_theta is nan"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        ({"rope_scaling": {"type": "yarn", "factor": "big"}}, "factor is 'big'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "per layer type"),
        ({"partial_rotary_factor": 0.1}, "partial_rotary_factor 0.1"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "1 rope factors"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types must be 2"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention", "linear_attention"]},
            "among them linear_attention",
        ),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message.replace("(", r"\(")):
        decoder_spec(CONFIG | changes)


def rope_of(spec: ModelSpec) -> RopeSpec:
    rope = spec.layers[0].mixer.rope
    assert rope is not None
    return rope


def test_model_type_stands_in_for_architectures() -> None:
    spec = decoder_spec(CONFIG | {"architectures": None, "model_type": "qwen2"})
    assert (spec.architecture, spec.layers[0].mixer.qkv_bias) == ("Qwen2ForCausalLM", True)


def test_yarn_extends_the_context() -> None:
    spec = decoder_spec(CONFIG | {"rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert isinstance(rope_of(spec).scaling, YarnScaling)
    assert spec.context_length == 256


def test_one_set_of_rope_divisors_is_supported() -> None:
    factors = [1.0, 2.0, 3.0, 4.0]
    scaling = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors}
    assert rope_of(decoder_spec(CONFIG | {"rope_scaling": scaling})).scaling == DivisorScaling(
        (1.0, 2.0, 3.0, 4.0), 1.0
    )


def test_mistral_without_the_key_has_the_default_window() -> None:
    mistral = CONFIG | {"architectures": ["MistralForCausalLM"]}
    assert [layer.mixer.window for layer in decoder_spec(mistral).layers] == [4096, 4096]
    assert [layer.mixer.window for layer in decoder_spec(mistral | {"sliding_window": None}).layers] == [0, 0]


def test_layer_types_count_for_mistral() -> None:
    kinds = ["sliding_attention", "full_attention"]
    mistral = CONFIG | {"architectures": ["MistralForCausalLM"], "sliding_window": 16, "layer_types": kinds}
    assert [layer.mixer.window for layer in decoder_spec(mistral).layers] == [16, 0]
    with pytest.raises(StartupError, match="layer_types must be 2"):
        decoder_spec(mistral | {"layer_types": kinds * 2})
    with pytest.raises(StartupError, match="there is no sliding_window"):
        decoder_spec(mistral | {"sliding_window": None})


def test_a_partial_rotation_survives_its_fraction() -> None:
    config = CONFIG | {"hidden_size": 176, "head_dim": 44, "partial_rotary_factor": 30 / 44}
    assert rope_of(decoder_spec(config)).rotary_dim == 30


def checkpoint(config: dict[str, Any]) -> Checkpoint:
    """A checkpoint that has every tensor of the config."""
    spec = decoder_spec(config)
    tensors = {}
    for name, shape in stored_tensors(spec, HF_NAMES).items():
        tensors[name] = TensorRecord(name, "f32", shape, Path("model.safetensors"), 0, 0)
    return Checkpoint(Path("here"), "safetensors", config, {}, TokenizerFiles(None), {}, tensors, "")


def test_a_complete_checkpoint_passes() -> None:
    assert check_checkpoint(checkpoint(CONFIG)).num_layers == 2


def test_a_missing_tensor_is_named() -> None:
    broken = checkpoint(CONFIG)
    del broken.tensors["model.layers.1.mlp.up_proj.weight"]
    del broken.tensors["model.norm.weight"]
    with pytest.raises(StartupError, match=r"here: tensor model\.norm\.weight is missing, and 1 more"):
        check_checkpoint(broken)


def test_a_misshapen_tensor_is_named() -> None:
    broken = checkpoint(CONFIG)
    name = "model.layers.0.self_attn.k_proj.weight"
    broken.tensors[name] = TensorRecord(name, "f32", (32, 32), Path("x"), 0, 0)
    with pytest.raises(StartupError, match=r"k_proj\.weight has shape \(32, 32\), expected \(16, 32\)"):
        check_checkpoint(broken)


def test_a_tensor_the_model_would_ignore_is_refused() -> None:
    broken = checkpoint(CONFIG)
    broken.tensors["model.layers.0.self_attn.q_norm.weight"] = TensorRecord("", "f32", (8,), Path("x"), 0, 0)
    with pytest.raises(StartupError, match=r"LlamaForCausalLM has no tensor model\.layers\.0\.self_attn\.q_norm"):
        check_checkpoint(broken)


def test_layers_beyond_the_stated_number_are_named() -> None:
    larger = checkpoint(CONFIG | {"num_hidden_layers": 5})
    with pytest.raises(StartupError, match="here: the weights have layers up to number 4, num_hidden_layers is 2"):
        check_checkpoint(replace(larger, config=CONFIG))


def test_quantized_weights_are_refused_by_their_method() -> None:
    with pytest.raises(StartupError, match="quantization_config: weights quantized by 'gptq' are not supported"):
        check_checkpoint(checkpoint(CONFIG | {"quantization_config": {"quant_method": "gptq", "bits": 4}}))


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"])
def test_a_stored_head_that_differs_is_used(
    architecture: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does it."""
    stored = checkpoint(CONFIG | {"architectures": [architecture], "tie_word_embeddings": True})
    size = 100 * 32 * 4
    (tmp_path / "w").write_bytes(bytes(3 * size - 1) + b"x")
    embedding = TensorRecord("model.embed_tokens.weight", "f32", (100, 32), tmp_path / "w", 0, size)
    stored.tensors[embedding.name] = embedding
    for offset, tied in ((0, True), (size, True), (2 * size, False)):
        stored.tensors["lm_head.weight"] = replace(embedding, name="lm_head.weight", offset=offset)
        assert check_checkpoint(stored).head == HeadSpec(is_tied=tied)
    assert "lm_head.weight differs from model.embed_tokens.weight" in caplog.text
    stored.tensors["lm_head.weight"] = replace(embedding, format="f16", nbytes=size // 2)
    assert check_checkpoint(stored).head == HeadSpec(is_tied=False)


def test_tied_checkpoints_may_store_the_head_and_rotary_buffers() -> None:
    stored = checkpoint(CONFIG | {"tie_word_embeddings": True})
    for name in ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"):
        stored.tensors[name] = TensorRecord(name, "f32", (100, 32), Path("model.safetensors"), 0, 0)
    assert check_checkpoint(stored).head == HeadSpec(is_tied=True)


def test_the_registry_loads_no_torch() -> None:
    code = "import sys, inferd.models.registry, inferd.executor.factory; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}).returncode == 0
