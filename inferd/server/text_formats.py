"""How a model writes tool calls and reasoning, read from its chat template, which shows the model its own form."""

from __future__ import annotations

from collections.abc import Mapping

# The first marker that a template holds decides. Names are those of the gateway's parsers.
TOOL_CALL_MARKERS = (
    ("<｜tool▁call▁begin｜>", "deepseek_v3"),
    ("[TOOL_CALLS]", "mistral"),
    ("<function=", "qwen3_xml"),
    ("<tool_call>", "hermes"),
    ("func_name1(params_name1=", "pythonic"),
    ('{"name": function name, "parameters":', "llama3_json"),
    ("<|python_tag|>", "llama3_json"),
)


def tool_call_format(chat_templates: Mapping[str, str]) -> str:
    """The parser of the model's tool calls; '' when its templates know none."""
    text = chat_templates.get("tool_use") or chat_templates.get("default", "")
    if "tools" not in text:
        return ""
    return next((name for marker, name in TOOL_CALL_MARKERS if marker in text), "")


def reasoning_format(chat_templates: Mapping[str, str]) -> str:
    """The parser of the model's reasoning; '' when its template knows none.

    DeepSeek's templates belong to models that always reason; any other one that knows the close of a reasoning may.
    """
    text = chat_templates.get("default", "")
    if "</think>" not in text and "<think>" not in text:
        return ""
    switch = "enable_thinking" in text or "thinking is defined" in text
    return "deepseek_r1" if "<｜Assistant｜>" in text and not switch else "qwen3"
