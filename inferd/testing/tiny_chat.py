"""A tiny random decoder with a tokenizer and a chat template of its own: a whole product in milliseconds a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

BOS, START, END = "<s>", "<|im_start|>", "<|im_end|>"
BOS_ID, EOS_ID, VOCAB = 273, 274, 276
CONTEXT = 512
WORDS = ("the", "cat", "ing", "  ", '":', "tion", "und", "\n\n", "10", "tr", "fa")  # pieces of several bytes
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if tools %}{{ tools | tojson }}\n{% endif %}"
    "{% if tone %}tone: {{ tone }}\n{% endif %}{% if reasoning_effort %}effort: {{ reasoning_effort }}\n{% endif %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> Any:
    """A token per byte, then WORDS, then the control tokens; a text begins with BOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    from inferd.text.token_bytes import byte_alphabet

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
    specials = [BOS, END, START]
    backend.add_special_tokens(specials)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=END, additional_special_tokens=[START]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def write_tiny_chat(folder: Path) -> Path:
    """A llama of 512 positions whose every token may be drawn, in Hugging Face's form."""
    from inferd.testing.tiny_models import write_tiny_model  # seconds of imports, for those who only want the names

    tokenizer = byte_level_tokenizer()
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (BOS_ID, EOS_ID, VOCAB)
    write_tiny_model(
        "llama",
        folder,
        vocab_size=VOCAB,
        max_position_embeddings=CONTEXT,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )
    tokenizer.save_pretrained(folder)
    return folder
