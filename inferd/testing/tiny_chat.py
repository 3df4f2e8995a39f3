"""A tiny random decoder with a tokenizer and a chat template of its own: a whole product in milliseconds a token."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from inferd.testing.tiny_models import write_tiny_model
from inferd.text.token_bytes import byte_alphabet

BOS, START, END = "<s>", "<|im_start|>", "<|im_end|>"
CONTEXT = 512
WORDS = ("the", "cat", "ing", "  ", '":', "tion", "und", "\n\n", "10", "tr", "fa")  # pieces of several bytes
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, then WORDS, then the control tokens."""
    alphabet = byte_alphabet()
    vocabulary = {alphabet[byte]: byte for byte in range(256)}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [alphabet[byte] for byte in word.encode()]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if pair not in merges:
                merges.append(pair)
                vocabulary.setdefault("".join(pair), len(vocabulary))
            pieces[:2] = ["".join(pair)]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=END, additional_special_tokens=[START]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_tiny_chat(folder: Path) -> Path:
    """A llama of 512 positions whose every token may be drawn, in Hugging Face's form."""
    tokenizer = byte_level_tokenizer()
    write_tiny_model(
        "llama",
        folder,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tokenizer.save_pretrained(folder)
    return folder
