"""Tiny random BERT checkpoints with a tokenizer of their own, for tests: made with transformers, in milliseconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, PreTrainedTokenizerFast

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_LIST = "the a cat dog bird sat ran flew on over mat moon house of and red blue small big quick"
WORDS = tuple(WORD_LIST.split(" "))
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
VOCABULARY = (*SPECIALS, *WORDS, *(letter for letter in LETTERS if letter != "a"), *(f"##{each}" for each in LETTERS))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece over VOCABULARY in BERT's form: [CLS] text [SEP], and [CLS] text [SEP] second [SEP] for a pair."""
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_max_length=64, **{f"{role}_token": text for role, text in names.items()}
    )


def make_tiny_bert(folder: Path, model_class: Any, **changes: Any) -> Any:
    """Write a checkpoint of two layers and 64 positions to `folder`; returns the transformers model, in eval mode."""
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **changes,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.3 if parameter.dim() == 1 else 0.0, 0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def add_sentence_modules(
    folder: Path, pooling: str = "mean_tokens", max_seq_length: int = 32, prompts: dict[str, str] | None = None
) -> None:
    """Make it a sentence-transformers folder: pooling, then normalization."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    modes = {
        f"pooling_mode_{mode}": mode == pooling for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, content in {
        "modules.json": modules,
        "1_Pooling/config.json": {"word_embedding_dimension": 32, **modes},
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": prompts or {}},
    }.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
