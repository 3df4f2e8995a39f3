"""The Jinja environment of chat templates: transformers' own, in a sandbox, in which text keeps its origin."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import wraps
from types import BuiltinMethodType, MethodType
from typing import Any, NoReturn

from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator, Frame
from jinja2.environment import Environment
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from markupsafe import Markup

from inferd_gateway.templates.text import TextMarkup, concat, escaped, lifted, marked, owned, spans_of, written

# What these answer are their arguments, parts of them in which methods of Text cut, numbers, or Markup.
_PASSING = """
abs attr batch count d default dictsort first float groupby int items last length list map max min random reject
rejectattr round select selectattr slice sort sum unique wordcount
"""
PASSING_FILTERS = frozenset(_PASSING.split())
METHOD_FILTERS = {"trim": "strip", "lower": "lower", "upper": "upper", "capitalize": "capitalize"}


class RaisedByTemplate(TemplateError):
    """The template refused the conversation, in its own words."""


class GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks what the model wrote, for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("body"), [], [], body).set_lineno(line)

    def body(self, caller: Macro) -> str:
        written: str = caller()
        return written


class TextCodeGenerator(CodeGenerator):
    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:
        """`a ~ b`, which Jinja compiles to a function that nobody can replace."""
        escapes = frame.eval_ctx.volatile or frame.eval_ctx.autoescape
        self.write("environment.joined_markup((" if escapes else "environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class TextFormatter(SandboxedFormatter):
    """str.format, piece by piece."""

    def formatted(self, template: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        fields = list(self.parse(template))
        if spans_of(template) or any("{" in (spec or "") for _, _, spec, _ in fields):
            return owned(self.vformat(template, args, kwargs), template, args, kwargs)
        return concat(self._pieces(fields, args, kwargs))

    def _pieces(
        self, fields: Iterable[tuple[str, str | None, str | None, str | None]], args: Sequence[Any],
        kwargs: Mapping[str, Any],
    ) -> Iterator[str]:  # fmt: skip
        numbered = 0
        for literal, name, spec, conversion in fields:
            yield literal
            if name is None:
                continue
            if not name:
                name, numbered = str(numbered), numbered + 1
            value = self.convert_field(self.get_field(name, args, kwargs)[0], conversion)
            yield owned(self.format_field(value, spec or ""), value)


class TextEnvironment(ImmutableSandboxedEnvironment):
    """Whatever builds a string in a template builds a Text where the caller's text is part of it."""

    code_generator_class = TextCodeGenerator
    concat = staticmethod(concat)
    intercepted_binops = frozenset({"%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationTag], finalize=written
        )
        self.filters = {name: owning_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {
            "string": written,
            "replace": replace,
            "join": join,
            "tojson": tojson,
            "safe": safe,
            "e": escaped,
        }
        self.filters["escape"] = escaped
        self.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    def joined(self, values: Iterable[Any]) -> str:
        return concat(map(written, values))

    def joined_markup(self, values: Iterable[Any]) -> str:
        """Within {% autoescape %}, which no chat template needs."""
        return TextMarkup(markup_join(values))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        result = super().call_binop(context, operator, left, right)
        return owned(result, left, right) if isinstance(result, str) and not isinstance(left, Markup) else result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(__obj, "__self__", None)
        if type(owner) is str:
            __obj = getattr(lifted(owner), __obj.__name__)
        result = super().call(__context, __obj, *args, **kwargs)
        # Bytes do not know whose they are, and Markup does not either.
        return owned(result, object()) if type(result) is str and isinstance(owner, bytes | Markup) else result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None or isinstance(value.__self__, Markup):
            return wrapped
        assert isinstance(value, MethodType | BuiltinMethodType)
        template, mapped = str(value.__self__), value.__name__ == "format_map"
        formatter = TextFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            if mapped:
                (kwargs,), args = args, ()
            return formatter.formatted(template, args, kwargs)

        return formatted


def owning_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, of which a string that it makes of the caller's text is the caller's."""
    if name in PASSING_FILTERS:
        return function
    method = METHOD_FILTERS.get(name)

    @wraps(function)  # which keeps what Jinja is to pass besides the value
    def filtered(*args: Any, **kwargs: Any) -> Any:
        if method is not None and not isinstance(args[0], Markup):
            return getattr(lifted(written(args[0])), method)(*args[1:], **kwargs)
        result = function(*args, **kwargs)
        made_text = isinstance(result, str) and not isinstance(result, Markup)
        values = [value for value in args if not isinstance(value, Context | Environment | nodes.EvalContext)]
        return owned(result, values, kwargs) if made_text else result

    return filtered


def replace(value: Any, old: Any, new: Any, count: int | None = None) -> str:
    return lifted(written(value)).replace(written(old), written(new), -1 if count is None else count)


@pass_environment
def join(
    environment: Environment, value: Iterable[Any], d: Any = "", attribute: str | int | None = None
) -> str:  # fmt: skip
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return lifted(written(d)).join(map(written, value))


def safe(value: Any) -> TextMarkup:
    return marked(written(value))


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter would escape for HTML."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return owned(text, value)


def raise_exception(message: str) -> NoReturn:
    raise RaisedByTemplate(message)


def strftime_now(pattern: str) -> str:
    return owned(datetime.now().strftime(pattern), pattern)
