"""Which parser of reasoning a chat template asks for."""

from __future__ import annotations

import pytest

from inferd.server.text_formats import reasoning_format


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{{ messages }}", ""),
        ("{% if enable_thinking is false %}<think>\n\n</think>{% endif %}", "qwen3"),
        ("<｜Assistant｜><think>\n", "deepseek_r1"),
        ("{{ messages }}[THINK]", "mistral"),
        ("<｜Assistant｜>{% if not thinking is defined %}</think>{% endif %}", "qwen3"),
    ],
)
def test_reasoning_format(template, name):
    assert reasoning_format({"default": template}) == name
