"""The demo model: greedy tokens are those that transformers computes from the same GGUF file in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

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


@pytest.fixture(scope="module")
def prompts(demo_gguf: Path) -> list[list[int]]:
    """Half of them as chat turns, half as plain text."""
    tokenizer = AutoTokenizer.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name)
    turns = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in QUESTIONS[::2]]
    return [tokenizer.encode(text, add_special_tokens=False) for text in turns + QUESTIONS[1::2]]


@pytest.fixture(scope="module")
def model(demo_gguf: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(demo_gguf.parent, gguf_file=demo_gguf.name, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def driver(demo_gguf: Path, make_driver: Callable[[Path], Any]) -> Any:
    return make_driver(demo_gguf)


def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


def test_greedy_tokens(driver: Any, model: PreTrainedModel, prompts: list[list[int]], run_type: type) -> None:
    chosen = [prompts[0], prompts[4], prompts[13]]
    expected = [greedy(model, prompt, 16) for prompt in chosen]
    assert driver.run([run_type(prompt, max_tokens=16) for prompt in chosen], chunk=16) == expected


@pytest.mark.slow
def test_greedy_tokens_of_20_prompts(
    driver: Any, model: PreTrainedModel, prompts: list[list[int]], run_type: type
) -> None:
    """64 tokens each: alone, all at once, and with the prompts in chunks of 16."""
    expected = [greedy(model, prompt, 64) for prompt in prompts]

    def runs() -> list[Any]:
        return [run_type(prompt, max_tokens=64) for prompt in prompts]

    assert [driver.run([run])[0] for run in runs()] == expected
    assert driver.run(runs()) == expected
    assert driver.run(runs(), chunk=16) == expected
