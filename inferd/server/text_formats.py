"""How a model writes reasoning, read from its chat template. How it writes calls is known by rendering some, which the
gateway does."""

from __future__ import annotations

from collections.abc import Mapping


def reasoning_format(chat_templates: Mapping[str, str]) -> str:
    """The parser of the model's reasoning; '' when its template knows none.

    DeepSeek's templates belong to models that always reason; any other one that knows the close of a reasoning may.
    """
    text = chat_templates.get("default", "")
    if "[THINK]" in text:
        return "mistral"
    if "</think>" not in text and "<think>" not in text:
        return ""
    switch = "enable_thinking" in text or "thinking is defined" in text
    return "deepseek_r1" if "<｜Assistant｜>" in text and not switch else "qwen3"
