"""The Jinja environment of chat templates, and what a template's syntax tree tells about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NoReturn

from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

ContentFormat = Literal["string", "openai"]

# What these make of a text can only form a control token that segments.Protector has already seen.
_FILTERS = """
trim tojson length count string default d join first last list items dictsort selectattr rejectattr safe upper lower
capitalize title int float abs round sort unique min max indent
"""
_METHODS = """
strip lstrip rstrip startswith endswith split rsplit partition rpartition items keys values get append update lower
upper title capitalize index find count isdigit
"""
SAFE_FILTERS = frozenset(_FILTERS.split())
SAFE_METHODS = frozenset(_METHODS.split())
CUTTING = frozenset({"split", "rsplit", "partition", "rpartition", "replace"})


class RaisedByTemplate(TemplateError):
    """The template refused the conversation, in its own words."""


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote, for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationTag]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter would escape for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: str) -> NoReturn:
    raise RaisedByTemplate(message)


def strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


@dataclass(frozen=True)
class TemplateTraits:
    """content_format: what the template wants as message content. wrap_strings: it takes lists only.
    cuts, pieces, strict: see segments.Protector."""

    content_format: ContentFormat
    wrap_strings: bool
    cuts: tuple[str, ...]
    pieces: tuple[str, ...]
    strict: bool


def analyse(source: str) -> TemplateTraits:
    """Raises jinja2.TemplateSyntaxError."""
    tree = make_environment().parse(source)
    tests_string = any(test.name == "string" for test in tree.find_all(nodes.Test))
    return TemplateTraits(
        content_format="openai" if iterates_content(tree) else "string",
        wrap_strings=not tests_string,
        cuts=tuple(dict.fromkeys(cut_texts(tree))),
        pieces=tuple(dict.fromkeys(own_texts(tree))),
        strict=not all(is_safe(node) for node in tree.find_all((nodes.Filter, nodes.Call)))
        or any(node.step is not None for node in tree.find_all(nodes.Slice)),
    )


def iterates_content(tree: nodes.Template) -> bool:
    """Whether a loop runs over a message's content, or over a variable that was set from it."""
    names = {
        assign.target.name
        for assign in tree.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name) and is_content(assign.node)
    }
    loops = (unfiltered(loop.iter) for loop in tree.find_all(nodes.For))
    return any(is_content(item) or (isinstance(item, nodes.Name) and item.name in names) for item in loops)


def is_content(node: nodes.Node | None) -> bool:
    node = unfiltered(node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def unfiltered(node: nodes.Node | None) -> nodes.Node | None:
    while isinstance(node, nodes.Filter):
        node = node.node
    return node


def called_name(node: nodes.Expr) -> str | None:
    if isinstance(node, nodes.Filter):
        return node.name
    callee = node.node if isinstance(node, nodes.Call) else None
    return callee.attr if isinstance(callee, nodes.Getattr) else None


def cut_texts(tree: nodes.Template) -> Iterator[str]:
    for node in tree.find_all((nodes.Filter, nodes.Call)):
        assert isinstance(node, nodes.Filter | nodes.Call)
        if called_name(node) in CUTTING:
            yield from (
                arg.value for arg in node.args[:1] if isinstance(arg, nodes.Const) and isinstance(arg.value, str)
            )


def own_texts(tree: nodes.Template) -> Iterator[str]:
    yield from (data.data for data in tree.find_all(nodes.TemplateData))
    yield from (const.value for const in tree.find_all(nodes.Const) if isinstance(const.value, str))


def is_safe(node: nodes.Expr) -> bool:
    assert isinstance(node, nodes.Filter | nodes.Call)
    name = called_name(node)
    if name is None:
        return True  # a macro, range, namespace, raise_exception
    if name == "replace":
        new = node.args[1] if len(node.args) > 1 else None
        return isinstance(node.args[0], nodes.Const) and isinstance(new, nodes.Const) and new.value == ""
    if name == "map":
        return not node.args
    return name in (SAFE_FILTERS if isinstance(node, nodes.Filter) else SAFE_METHODS)
