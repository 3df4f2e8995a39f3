"""Golden transcripts of tool calls and reasoning; the same calls however the text is cut; work linear in the text."""

from __future__ import annotations

import gc
import itertools
import json
import time

import pytest
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Reasoning
from inferd_gateway.parsers.reasoning import ReasoningSplitter, Start
from inferd_gateway.parsers.registry import FORMATS, PLAIN

SCHEMAS = {
    "f": {"properties": {"a": {"type": "integer"}, "s": {"type": "string"}, "l": {"anyOf": [{"type": "array"}]}}},
    "g": {},
}
B, E, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
ALL, OVER = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"

# format, text, (content, [(name, arguments)])
GOLDEN = [
    ("hermes", "just text \n\n", ("just text \n\n", [])),
    (
        "hermes",
        'I look.\n\n<tool_call>\n{"name": "f", "arguments": {"a": 1, "s": "}\\"</tool_call>"}}\n</tool_call>\n'
        '<tool_call>{"arguments":{},"name":"g"}</tool_call>',
        ("I look.", [("f", '{"a": 1, "s": "}\\"</tool_call>"}'), ("g", "{}")]),
    ),
    ("hermes", '<tool_call>{"x":1}</tool_call> hi', ('<tool_call>{"x":1}</tool_call> hi', [])),
    ("hermes", "a < b <tool", ("a < b <tool", [])),
    ("hermes", "<tool_call>\n", ("<tool_call>", [])),
    ("hermes", "<tool_call>no</tool_call>", ("<tool_call>no</tool_call>", [])),
    ("hermes", '<tool_call>{"name": "g"}</tool_call>', ("", [("g", "{}")])),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1', ("", [("f", '{"a": 1')])),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}', ("", [("f", '{"a": 1}')])),
    ("hermes", '<tool_call>{"name": "f", "arguments": null}<tool_call>{"name": "g"}', ("", [("f", "{}"), ("g", "{}")])),
    ("qwen3_json", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', ("", [("f", "{}")])),
    (
        "qwen3_xml",
        "Sure\n<tool_call>\n<function=f>\n<parameter=a>\n12\n</parameter>\n<parameter=s>\n7\n<b>\n</parameter>\n"
        "<parameter=l>\n[1, 2]\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=g>\n</function>\n</tool_call>",
        ("Sure", [("f", '{"a": 12, "s": "7\\n<b>", "l": [1, 2]}'), ("g", "{}")]),
    ),
    ("qwen3_coder", "<function=f><parameter=a>x</parameter></function>", ("", [("f", '{"a": "x"}')])),
    ("qwen3_xml", "<tool_call>none</tool_call>", ("", [])),
    ("qwen3_xml", "<function=not a name>x", ("<function=not a name>x", [])),
    (
        "llama3_json",
        '\n{"name": "f", "parameters": {"a": 1}}; {"name":"g","parameters":{}}',
        ("", [("f", '{"a": 1}'), ("g", "{}")]),
    ),
    ("llama3_json", '<|python_tag|>{"parameters": {"a": "1"}, "name": "f"}', ("", [("f", '{"a": "1"}')])),
    ("llama3_json", '{"name": "other", "parameters": {}}', ('{"name": "other", "parameters": {}}', [])),
    ("llama3_json", '{"answer": 1}', ('{"answer": 1}', [])),
    ("llama3_json", '{"name": "f", "par', ('{"name": "f", "par', [])),
    ("llama3_json", "plain {text}", ("plain {text}", [])),
    (
        "mistral",
        'Hi [TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        ("Hi", [("f", '{"a": 1}'), ("g", "{}")]),
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": {"b": [1]}}[TOOL_CALLS]g{}', ("", [("f", '{"a": {"b": [1]}}'), ("g", "{}")])),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{"a": 1}', ("", [("f", '{"a": 1}')])),
    ("mistral", "[TOOL_CALLS]bad name{", ("[TOOL_CALLS]bad name{", [])),
    ("mistral", "[TOOL_CALLS]f", ("[TOOL_CALLS]f", [])),
    (
        "pythonic",
        '[f(a=1, s="x, ) \\" y"), g()]',
        ("", [("f", '{"a": 1, "s": "x, ) \\" y"}'), ("g", "{}")]),
    ),
    (
        "pythonic",
        "[g(x=[1, {'a': (1, 2)}], y=True, z=None, w=-1.5, q=name, r='\\d', t=true)]",
        (
            "",
            [("g", '{"x": [1, {"a": [1, 2]}], "y": true, "z": null, "w": -1.5, "q": "name", "r": "\\\\d", "t": true}')],
        ),
    ),
    ("pythonic", "[1, 2]", ("[1, 2]", [])),
    ("pythonic", "[other(a=1)]", ("[other(a=1)]", [])),
    ("pythonic", "text [f(a=1)]", ("text [f(a=1)]", [])),
    ("pythonic", "[__import__('os').system('x')]", ("[__import__('os').system('x')]", [])),
    (
        "deepseek_v3",
        f'ok{ALL}{B}function{SEP}f\n```json\n{{"a": 1}}\n```{E}\n{B}function{SEP}g\n```json\n{{}}\n```{E}{OVER}',
        ("ok", [("f", '{"a": 1}'), ("g", "{}")]),
    ),
    ("deepseek_v3", f'{ALL}{B}f{SEP}{{"a": 1}}{E}{B}g{SEP}{{}}{E}{OVER}', ("", [("f", '{"a": 1}'), ("g", "{}")])),
    ("deepseek_v3", "a <｜tool", ("a <｜tool", [])),
    (
        "plain",
        '[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {}}]',
        ("", [("f", '{"a": 1}'), ("g", "{}")]),
    ),
    ("plain", "no list", ("no list", [])),
]


PARAMETERS = {
    "$defs": {"count": {"type": "integer"}, "a/b": {"enum": [1, 2]}, "self": {"$ref": "#/$defs/self"}},
    "allOf": [{"properties": {"through": {"type": "array"}}}],
    "properties": {
        "ref": {"$ref": "#/$defs/count"},
        "escaped": {"$ref": "#/%24defs/a~1b"},
        "all": {"allOf": [{"$ref": "#/$defs/count"}, {"minimum": 3}]},
        "any": {"anyOf": [{"$ref": "#/$defs/count"}, {"type": "null"}]},
        "maybe": {"type": ["string", "null"]},
        "text_or_list": {"anyOf": [{"type": "string"}, {"type": "array"}]},
        "text_or_number": {"type": ["string", "number"]},
        "numbers": {"enum": [1, 2.5]},
        "words": {"enum": ["1", "2"]},
        "one": {"const": True},
        "same": {"$ref": "#/$defs/self"},
        "lost": {"$ref": "#/$defs/none"},
        "nothing": {},
        "number": {"type": "number"},
    },
}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("ref", "12", "12"),
        ("escaped", "2", "2"),
        ("all", "5", "5"),
        ("any", "7", "7"),
        ("any", "None", "null"),
        ("maybe", "null", "null"),
        ("maybe", "none", '"none"'),
        ("maybe", "12", '"12"'),
        ("text_or_list", "[1, 2]", "[1, 2]"),
        ("text_or_list", "{}", '"{}"'),
        ("text_or_number", "12", '"12"'),
        ("numbers", "2.5", "2.5"),
        ("words", "1", '"1"'),
        ("one", "True", "true"),
        ("same", "1", '"1"'),
        ("lost", "1", '"1"'),
        ("nothing", "1", '"1"'),
        ("through", "[1]", "[1]"),
        ("unknown", "1", '"1"'),
        ("number", "12345678901234567890.12345678901234567890", "12345678901234567890.12345678901234567890"),
        ("ref", "9" * 5000, "9" * 5000),
        ("number", "1e400", "1e400"),
        ("number", "NaN", '"NaN"'),
        ("number", "about 3", '"about 3"'),
    ],
)
def test_the_schema_says_what_a_value_means(name, text, value):
    parser = FORMATS["qwen3_xml"].make({"f": PARAMETERS})
    _, calls = read(parser, [f"<function=f><parameter={name}>\n{text}\n</parameter></function>"])
    assert calls == [("f", f'{{"{name}": {value}}}')]


def make(name):
    return (PLAIN if name == "plain" else FORMATS[name]).make(SCHEMAS)


def read(parser, chunks):
    """(content, [(name, arguments)])"""
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)] + parser.finish()
    content, calls = [], []
    for piece in pieces:
        if isinstance(piece, CallStart):
            calls.append((piece.name, []))
        elif isinstance(piece, Arguments):
            calls[-1][1].append(piece.text)
        else:
            content.append(piece.text)
    return "".join(content), [(name, "".join(parts)) for name, parts in calls]


@pytest.mark.parametrize(("name", "text", "expected"), GOLDEN)
def test_golden_calls_however_the_text_is_cut(name, text, expected):
    assert read(make(name), [text]) == expected
    assert read(make(name), list(text)) == expected
    for at in range(len(text)):
        assert read(make(name), [text[:at], text[at:]]) == expected
    if len(text) < 60:
        for first, second in itertools.combinations(range(len(text)), 2):
            assert read(make(name), [text[:first], text[first:second], text[second:]]) == expected


def test_arguments_stream_as_they_come():
    parser = make("hermes")
    assert parser.push('<tool_call>{"name": "f", "arguments": {"a"') == [CallStart("f"), Arguments('{"a"')]
    assert parser.push(": 1") == [Arguments(": 1")]
    assert parser.push("}}") == [Arguments("}")]


@pytest.mark.parametrize(
    ("start", "text", "expected"),
    [
        (Start.INSIDE, "<think>\nhm  m\n</think>\n\nanswer ", ("hm  m", "answer ")),
        (Start.INSIDE, " hm </think>x</think>", ("hm", "x</think>")),
        (Start.INSIDE, "never ends <", ("never ends <", "")),
        (Start.PERHAPS, "\n<think>hm</think>\n x", ("hm", "x")),
        (Start.PERHAPS, "\n no ", ("", "\n no ")),
        (Start.PERHAPS, "<thi", ("", "<thi")),
        (Start.PERHAPS, "  ", ("", "  ")),
        (Start.PERHAPS, "<think>\n\n</think>\n\nx", ("", "x")),
        (Start.ANSWER, "<think>x", ("", "<think>x")),
    ],
)
def test_reasoning_however_the_text_is_cut(start, text, expected):
    def split(chunks):
        splitter = ReasoningSplitter(start)
        pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.finish()
        return tuple(
            "".join(piece.text for piece in pieces if isinstance(piece, kind)) for kind in (Reasoning, Content)
        )

    assert split([text]) == expected
    assert split(list(text)) == expected
    assert all(split([text[:at], text[at:]]) == expected for at in range(len(text)))


def test_a_choice_chains_reasoning_calls_and_hidden_tokens():
    plan = ParsePlan(
        reasoning=Start.INSIDE, reasoning_end=9, tools=lambda: make("mistral"), one_call=True, hidden=("<|end|>",)
    )
    parser = plan.parser()
    text = 'think</think>\n[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]<|end|>'
    pieces = [piece for char in text for piece in parser.push(char)] + parser.finish()
    assert [piece.name for piece in pieces if isinstance(piece, CallStart)] == ["f"]
    assert "".join(piece.text for piece in pieces if isinstance(piece, Arguments)) == "{}"
    assert "".join(piece.text for piece in pieces if isinstance(piece, Reasoning)) == "think"
    assert not any(isinstance(piece, Content) for piece in pieces)
    parser.count([1, 2])
    parser.count([9, 3])
    parser.count([4])
    assert parser.reasoning_tokens == 3


HOSTILE = ["{", '"', " ", "<tool_call>", "[TOOL_CALLS]", B, "<parameter=a>", "f(a=1,", '"\\']
OPENINGS = {
    "hermes": '<tool_call>{"name": "f", "arguments": {"a": "',
    "qwen3_xml": "<tool_call><function=f><parameter=a>",
    "llama3_json": '{"name": "f", "parameters": {"a": "',
    "mistral": "[TOOL_CALLS]f[ARGS]{",
    "pythonic": "[f(a=",
    "deepseek_v3": B + "f" + SEP + "{",
}


@pytest.fixture
def no_collector():
    """A full collection in the middle would look like work."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("name", OPENINGS)
def test_hostile_text_takes_time_linear_in_its_length(name):
    def once(text):
        start = time.process_time()
        read(make(name), list(text))
        read(make(name), [text])
        return time.process_time() - start

    def cpu(text):
        return min(once(text), once(text))

    for unit in HOSTILE:
        for opening in ("", OPENINGS[name]):
            short, long = (opening + unit * (size // len(unit)) for size in (500, 4_000))
            # Eight times the text: eight times the work, with room for noise; quadratic work would be sixty-four times.
            assert cpu(long) < 30 * max(cpu(short), 0.005), (unit, opening)


def test_values_that_python_would_choke_on_become_text():
    deep = "[" * 5000
    content, calls = read(make("pythonic"), [f"[f(a={deep}{']' * 5000}, s={'-' * 5000}1)]"])
    assert content == ""
    assert json.loads(calls[0][1])["s"] == "-" * 5000 + "1"
