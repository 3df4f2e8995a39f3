"""lm-eval's `local-completions` over 200 local items, against transformers on the same file: `make lm-eval`.

The task is inferd_local.yaml and items.jsonl; nothing but lm-eval itself is fetched, into .clients/. Two servers:

- the reference kernels compute in float32 on the dequantized weights, as transformers does: within PER_TOKEN, and
  is_greedy equal for every item;
- the default CPU kernels compute on the 4-bit blocks with 8-bit activations: their difference is printed, not judged.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from inferd.checkpoint.source import resolve_source
from inferd.testing.product import running_product
from tools.clients.environments import python_environment
from tools.make_golden import load_model

HERE = Path(__file__).resolve().parent
PER_TOKEN = 1e-3
TASK = "inferd_local"
BATCH = 8


@dataclass(frozen=True)
class Score:
    """Log likelihood of a continuation, whether each of its tokens is the most probable one, and their number."""

    total: float
    greedy: bool
    tokens: int


def read_items() -> list[tuple[str, str]]:
    lines = (HERE / "items.jsonl").read_text(encoding="utf-8").splitlines()
    return [(item["context"], item["continuation"]) for item in map(json.loads, lines)]


def expected_scores(gguf: Path, tokenizer: Any) -> list[Score]:
    """What transformers computes in float32, tokens split as lm-eval splits them: the whole, less the context's."""
    model = load_model(gguf)
    scores = []
    for context, continuation in read_items():
        ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        rows, tokens = logprobs[start - 1 : -1], torch.tensor(ids[start:])
        chosen = rows.gather(1, tokens.unsqueeze(1)).squeeze(1)
        scores.append(Score(float(chosen.sum()), bool((rows.argmax(-1) == tokens).all()), len(tokens)))
    return scores


def harness_scores(gguf: Path, tokenizer_folder: Path, *flags: str) -> list[tuple[float, bool]]:
    """What lm-eval was told by a server, in the order of the items."""
    python = python_environment("lm-eval", HERE / "lm-eval.txt", over_project=True)
    with tempfile.TemporaryDirectory() as folder, running_product(str(gguf), *flags) as product:
        options = {
            "model": gguf.name,
            "base_url": f"{product.http}/v1/completions",
            "tokenizer_backend": "huggingface",
            "tokenizer": str(tokenizer_folder),
            "num_concurrent": "4",
            "max_retries": "1",
        }
        command = [python, "-m", "lm_eval", "--model", "local-completions"]
        command += ["--model_args", ",".join(f"{name}={value}" for name, value in options.items())]
        command += ["--tasks", TASK, "--include_path", ".", "--batch_size", str(BATCH)]
        command += ["--output_path", folder, "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/cache"}
        subprocess.run(command, cwd=HERE, env=os.environ | offline, check=True, timeout=900)
        (samples,) = Path(folder).rglob(f"samples_{TASK}_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    rows.sort(key=lambda row: row["doc_id"])
    return [read_response(row["filtered_resps"][0]) for row in rows]


def read_response(response: list[Any]) -> tuple[float, bool]:
    """lm-eval writes both as text."""
    return float(response[0]), str(response[1]) == "True"


def compare(name: str, expected: list[Score], found: list[tuple[float, bool]]) -> tuple[float, int]:
    """Prints; returns the largest difference per token and the number of items whose is_greedy differs."""
    assert len(found) == len(expected)
    pairs = list(zip(expected, found, strict=True))
    differences = sorted(abs(score.total - total) / score.tokens for score, (total, _) in pairs)
    unequal = sum(score.greedy != greedy for score, (_, greedy) in pairs)
    greedy = sum(score.greedy for score in expected)
    print(
        f"{name}: {len(found)} items, difference per token at most {differences[-1]:.2e}, "
        f"median {differences[len(differences) // 2]:.2e}; is_greedy differs in {unequal} ({greedy} are greedy)"
    )
    return differences[-1], unequal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    gguf = resolve_source("demo", None, lambda phase, fraction: None)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        expected = expected_scores(gguf, tokenizer)
        reference = harness_scores(gguf, Path(folder), "--kernel-backend", "reference")
        default = harness_scores(gguf, Path(folder))
    largest, unequal = compare("reference kernels, float32", expected, reference)
    compare("default CPU kernels, 8-bit activations", expected, default)
    sys.exit(largest > PER_TOKEN or unequal > 0)


if __name__ == "__main__":
    main()
