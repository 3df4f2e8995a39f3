"""Greedy tokens of the demo model as transformers computes them in float32, for tests/golden/demo_greedy.json.

python tools/make_golden.py MODEL.gguf tests/golden/demo_greedy.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

TOKENS = 64
QUESTIONS = [
    "What is the capital of France? Answer in one sentence.",
    "Write a haiku about rivers.",
    "The quick brown fox",
    "List three prime numbers.",
    "def fibonacci(n):",
    "Once upon a time",
    "Explain gravity to a child.",
    "Translate 'good morning' to Spanish.",
    "1, 2, 3, 4,",
    "Why is the sky blue?",
    "Name a large planet.",
    "In the beginning",
    "How do I boil an egg?",
    "SELECT name FROM users WHERE",
    "The meaning of life is",
    "What is 12 times 12?",
    "Dear Sir or Madam,",
    "Give me a recipe for bread with flour, water, salt and yeast, in five short steps.",
    "Roses are red,",
    "Summarize: The cat sat on the mat. The dog lay by the door. Both slept until noon.",
]


def load_model(path: Path) -> LlamaForCausalLM:
    config = LlamaConfig(**load_gguf_checkpoint(str(path))["config"])
    with torch.device("meta"):
        empty = LlamaForCausalLM(config)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=empty)["tensors"]
    model = LlamaForCausalLM(config).eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert missing in ([], ["lm_head.weight"]), missing
    model.tie_weights()
    return model


def texts() -> list[str]:
    """Every second question as a chat turn, the others as plain text."""
    return [
        text if index % 2 else f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
        for index, text in enumerate(QUESTIONS)
    ]


def greedy(model: LlamaForCausalLM, prompt: list[int]) -> list[int]:
    """TOKENS tokens, on past any end-of-text."""
    ids = torch.tensor([prompt])
    mask = torch.ones_like(ids)
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    tokens: list[int] = out[0, len(prompt) :].tolist()
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    path = arguments.model
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = load_model(path)
    cases = []
    for text in texts():
        prompt = tokenizer.encode(text, add_special_tokens=False)
        cases.append({"text": text, "prompt": prompt, "tokens": greedy(model, prompt)})
    lines = ",\n".join(json.dumps(case) for case in cases)
    arguments.output.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
