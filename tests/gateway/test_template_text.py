"""Text that knows whose it is: like the string that it equals in everything, and never losing the caller's part."""

from __future__ import annotations

import time
from typing import Any

import pytest
from inferd_gateway.templates.environment import TextEnvironment
from inferd_gateway.templates.segments import ControlTokens
from inferd_gateway.templates.text import Text, concat, own, spans_of
from jinja2 import TemplateError

METHOD_ARGUMENTS = {
    "center": (9,), "count": ("a",), "endswith": ("a",), "find": ("a",), "format_map": ({},), "index": ("b",),
    "join": (["x", "y"],), "ljust": (9,), "partition": ("b",), "removeprefix": ("a",), "removesuffix": ("b",),
    "replace": ("b", "x"), "rfind": ("a",), "rindex": ("b",), "rjust": (9,), "rpartition": ("b",),
    "startswith": ("a",), "translate": ({97: "x"},), "zfill": (9,), "split": ("b",), "rsplit": ("b", 1),
}  # fmt: skip
FILTER_ARGUMENTS = {
    "attr": "('x')", "batch": "(2)", "format": "(x)", "groupby": "(0)", "map": "('string')", "slice": "(2)",
    "join": "('-')", "indent": "(2, true)", "replace": "('z', '<')", "sum": "(none, [])",
    "truncate": "(9)", "wordwrap": "(3)",
}  # fmt: skip


def texts_in(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [text for item in value for text in texts_in(item)]


def not_of_caller(text: str) -> str:
    return "".join(
        char for index, char in enumerate(text) if not any(start <= index < end for start, end, _ in spans_of(text))
    )


@pytest.mark.parametrize("name", sorted({name for name in dir(str) if name[0] != "_"} - {"encode", "maketrans"}))
def test_every_method_of_strings_gives_the_same_and_keeps_the_origin(name):
    for text in (" a b\tb\n a", "aBa b", "\u0130\u00dfb", "b"):
        plain = getattr(text, name)(*METHOD_ARGUMENTS.get(name, ()))
        found = getattr(own(text), name)(*METHOD_ARGUMENTS.get(name, ()))
        assert found == plain
        if isinstance(plain, str | list | tuple):
            assert all(isinstance(part, Text) for part in texts_in(found) if part and part not in ("x", "y"))


def test_origin_stays_with_its_characters():
    """Capitals are the template's; small letters, digits and the hyphen are the caller's."""
    text = concat(["A B", own("a b"), "C ", own("1b2"), "D"])
    samples = [
        text[2:7], text[-3:], text[4], *text, *text.split(), *text.split("b", 1), *text.rsplit(None, 1),
        *text.partition("b"), *text.rpartition("B"), text.replace("b", "X"), text.replace("B", own("y"), 1),
        text.strip("AD"), text.lstrip("A "), text.removesuffix("D"), own("-").join([text, "Z"]), text * 2, "Q" + text,
        *("L\n" + text + "\nM").splitlines(), text.removeprefix("A"), text + "Q", text + text, 2 * text,
    ]  # fmt: skip
    for sample in samples:
        template_s = not_of_caller(sample)
        assert template_s.replace(" ", "").replace("\n", "") == "".join(filter(str.isupper, sample)), sample


@pytest.mark.parametrize("name", sorted(TextEnvironment().filters))
def test_no_filter_lets_text_out(name):
    environment = TextEnvironment()
    tried = 0
    for value in ("x", "'a' ~ x ~ 'b'", "[x, x]", "[[x], [x]]", "{'a': x}", "'a' + (x | safe)", "'%s'", "1"):
        template = environment.from_string(f"{{{{ ({value}) | {name}{FILTER_ARGUMENTS.get(name, '')} }}}}")
        try:
            found = concat(template.generate({"x": own("zz zz-zz")}))
        except (TypeError, ValueError, AttributeError, LookupError, TemplateError):
            continue
        tried += 1
        assert "z" not in not_of_caller(found).lower(), (value, found)
    assert tried


def test_text_of_the_template_stays_its_own_where_it_is_joined_with_the_callers():
    environment = TextEnvironment()
    for source in (
        "{{ '<|a|>{}<|b|>'.format(x) }}", "{{ '<|a|>' ~ x ~ '<|b|>' }}", "{{ '<|a|>' + x + '<|b|>' }}",
        "{{ ['<|a|>', x, '<|b|>'] | join }}", 
        "{{ 'a-b' | replace('a', '<|a|>') | replace('b', '<|b|>') | replace('-', x) }}",
        "{{ ('<|a|>' + x + '<|b|> ') | trim }}", "{{ '{a}{0}{b}'.format(x, a='<|a|>', b='<|b|>') }}",
        "{% macro m() %}<|a|>{{ x }}<|b|>{% endmacro %}{{ m() }}", "{% set y %}<|a|>{{ x }}<|b|>{% endset %}{{ y }}",
        "{{ '[A]' + (x | safe) + '[B]' }}", "{{ '-'.join(['<|a|>', '<|b|>']) | replace('-', x) }}",
    ):  # fmt: skip
        found = concat(environment.from_string(source).generate({"x": own("q<|a|>")}))
        assert not_of_caller(found) in ("<|a|><|b|>", "[A][B]"), source


def test_finding_forged_tokens_is_linear():
    control = ControlTokens(["<|im_start|>", "<|im_end|>", "</s>", *(f"<unused{n}>" for n in range(6000))])
    for text in ("<" * 200_000, "<|im_" * 40_000, "<|im_end|>" * 20_000, "a" * 200_000, "<unused" * 30_000):
        started = time.perf_counter()
        control.runs(own(text))
        assert time.perf_counter() - started < 1.0


def test_tokens_that_overlap():
    control = ControlTokens(["abc", "bcd", "ab", "cde"])
    assert control.runs(concat(["a", own("b"), "cd"])) == [("a", True), ("b", False), ("cd", True)]
    assert control.runs(concat(["ab", own("c")])) == [("ab", True), ("c", False)]
    assert control.runs(concat([own("ab"), "cde"])) == [("ab", False), ("cde", True)]
    assert control.runs(concat([own("xabx"), "abc"])) == [("x", True), ("ab", False), ("xabc", True)]
    assert control.runs(own("abcd")) == [("abcd", False)]
