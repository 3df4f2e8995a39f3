"""A first call to try, which the model that is served can answer."""

from __future__ import annotations

from collections.abc import Mapping

from inferd.v1 import model_pb2

QUESTION = "What is the capital of France? Answer in one sentence."
SENTENCE = "Paris is the capital of France."


def example_call(info: model_pb2.GetModelInfoResponse) -> tuple[str, Mapping[str, object]]:
    """(path, body without the model) of an HTTP request for the first thing that the model can do."""
    tasks = info.card.tasks
    if model_pb2.TASK_GENERATE in tasks and info.chat_templates:
        return "/v1/chat/completions", {"temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}
    if model_pb2.TASK_GENERATE in tasks:
        return "/v1/completions", {"temperature": 0, "prompt": "The capital of France is"}
    if model_pb2.TASK_EMBED in tasks:
        return "/v1/embeddings", {"input": SENTENCE}
    if model_pb2.TASK_SCORE_PAIRS in tasks:
        return "/rerank", {"query": QUESTION, "documents": [SENTENCE, "The moon is far away."]}
    return "/classify", {"input": SENTENCE}
