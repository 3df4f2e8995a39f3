"""Which parsers a chat template asks for."""

from __future__ import annotations

import pytest

from inferd.server.text_formats import reasoning_format, tool_call_format


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ""),
        ('{% if tools %}<tool_call>\n{"name": <function-name>}\n</tool_call>{% endif %}', "hermes"),
        ("{% if tools %}<tool_call>\n<function=example>{% endif %}", "qwen3_xml"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("{% if tools is not none %}<|python_tag|>{% endif %}", "llama3_json"),
        ("{% if tools %}[func_name1(params_name1=params_value1)]{% endif %}", "pythonic"),
        ("{{ tools }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek_v3"),
        ("<tool_call>", ""),
    ],
)
def test_tool_call_format(template, name):
    assert tool_call_format({"default": template}) == name


def test_the_variant_for_tools_decides():
    assert tool_call_format({"default": "plain", "tool_use": "{{ tools }}<tool_call>"}) == "hermes"
    assert tool_call_format({}) == ""


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages }}", ""),
        ("{% if enable_thinking is false %}<think>\n\n</think>{% endif %}", "qwen3"),
        ("<｜Assistant｜><think>\n", "deepseek_r1"),
        ("<｜Assistant｜>{% if not thinking is defined %}</think>{% endif %}", "qwen3"),
    ],
)
def test_reasoning_format(template, name):
    assert reasoning_format({"default": template}) == name
