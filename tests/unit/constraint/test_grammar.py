"""Each kind of constraint: the texts it takes, those it does not, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferd.constraint.grammar import checked_grammar
from inferd.constraint.matcher import MatcherFactory
from inferd.constraint.schema import MAX_OPTIONAL_PROPERTIES
from inferd.constraint.vocabulary import MatchVocabulary
from inferd.errors import InvalidConstraint
from inferd.messages import Vocabulary
from inferd.request import ConstraintKind, ConstraintSpec

END, CALL = 256, 257
KINDS = ConstraintKind


@pytest.fixture(scope="module")
def factory() -> MatcherFactory:
    """A token per byte, an end, and a control token."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"<end>", b"<|call|>"]
    return MatcherFactory(MatchVocabulary(Vocabulary(tokens, [END], [END, CALL]), len(tokens)))


def takes(factory: MatcherFactory, grammar: str, text: str) -> bool:
    """Whether the text may be written token by token and then end. The control token is written as one."""
    matcher = factory.matcher(grammar)
    before, *after = text.split("<|call|>")
    tokens = [*before.encode()]
    for part in after:
        tokens += [CALL, *part.encode()]
    for token in tokens:
        mask = matcher.mask()
        if not mask or not mask[token // 8] >> token % 8 & 1:
            return False
        matcher.advance(token)
    return matcher.complete or bool(matcher.mask()[END // 8] >> END % 8 & 1)


def check(factory: MatcherFactory, kind: ConstraintKind, source: Any, good: list[str], bad: list[str]) -> None:
    text = source if isinstance(source, str) else json.dumps(source)
    grammar = checked_grammar(ConstraintSpec(kind, text), factory)
    assert [each for each in good if not takes(factory, grammar, each)] == []
    assert [each for each in bad if takes(factory, grammar, each)] == []


@pytest.mark.parametrize("name", ["List[int]", "Größe", "two words", "100%", "a%5Bb", 'Box["x"]', "a^b|c", "a#b"])
def test_a_reference_finds_any_name(factory: MatcherFactory, name: str) -> None:
    """pydantic, zod and others write names of generic and foreign types into references as they are."""
    written = name.replace("%5B", "%255B")
    properties = {"x": {"$ref": f"#/$defs/{written}"}}
    schema = {"type": "object", "properties": properties, "required": ["x"], "$defs": {name: {"type": "integer"}}}
    check(factory, KINDS.JSON_SCHEMA, schema, ['{"x":5}'], ['{"x":"5"}'])


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 12}, ["3", "11"], ["2", "12", "3.5", ""]),
        ({"type": "string", "pattern": "^a+$"}, ['"aa"'], ['"ab"', "aa"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"yesterday"']),
        ({"type": "string", "format": "made-up"}, ['"anything"'], ["1"]),
        ({"enum": ["a", 1, None]}, ['"a"', "1", "null"], ['"b"', "2"]),
        ({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["4"], ["2", "6"]),
        ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, ["null", "true"], ["1"]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 1}, ["[]", "[null]"], ["[null,null]", "[1]"]),
        (True, ["1", '{"a": []}'], ["x"]),
        (
            {"type": "object", "properties": {"format": {"const": "pdf"}}, "required": ["format"]},
            ['{"format":"pdf"}', '{\n    "format": "pdf"\n}'],
            ['{"format":"png"}', "{}", '{\n\n"format":"pdf"}', '{   "format":"pdf"}'],
        ),
        (
            {"$ref": "#/$defs/n", "$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}},
            ["[]", "[[],[[]]]"],
            ["[1]"],
        ),
    ],
)
def test_json_schema(factory: MatcherFactory, schema: Any, good: list[str], bad: list[str]) -> None:
    check(factory, KINDS.JSON_SCHEMA, schema, good, bad)


def test_an_escaped_key_cannot_pass_for_another(factory: MatcherFactory) -> None:
    schema = {"properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}, "type": "object"}
    check(factory, KINDS.JSON_SCHEMA, schema, ['{"a":1,"b":"2"}'], ['{"\\u0061":"2"}', '{"a":1,"a":"2"}'])


def test_options_in_the_schema_are_not_ours(factory: MatcherFactory) -> None:
    schema = {"type": "integer", "x-guidance": {"whitespace_pattern": "x", "lenient": True}, "uniqueItems": True}
    with pytest.raises(InvalidConstraint, match="uniqueItems"):
        checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, json.dumps(schema)), factory)


def test_lenient_leaves_out_what_cannot_be_enforced(factory: MatcherFactory) -> None:
    schema = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "maxItems": 2}
    grammar = checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, json.dumps(schema), lenient=True), factory)

    assert takes(factory, grammar, "[1,1]")
    assert not takes(factory, grammar, "[1,1,1]")


def test_json_object(factory: MatcherFactory) -> None:
    check(factory, KINDS.JSON_OBJECT, "{}", ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", "{"])


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d{2}|x+", ["12", "xx"], ["1", "", "x1"]),
        ("^ab$", ["ab"], ["ab "]),
        ("a.c", ["abc"], ["a\nc"]),
        ("(a+)+b", ["aab"], ["aa"]),
        (r"a/b\/", ["a/b/"], ["ab"]),
    ],
)
def test_regex(factory: MatcherFactory, pattern: str, good: list[str], bad: list[str]) -> None:
    check(factory, KINDS.REGEX, pattern, good, bad)


def test_choices_are_texts_whatever_is_in_them(factory: MatcherFactory) -> None:
    texts = ["yes", "yes sir", 'a"b', "c\\d", "e\nf", "é🎉", "/x/", "\x7f\x01", "<|call|>now"]
    check(factory, KINDS.CHOICES, texts, texts, ["yes s", "no", "yess"])


def test_control_tokens_stand_in_no_text_that_does_not_name_them(factory: MatcherFactory) -> None:
    matcher = factory.matcher(checked_grammar(ConstraintSpec(KINDS.REGEX, r"(.|\n)*"), factory))
    mask = matcher.mask()

    assert not mask[CALL // 8] >> CALL % 8 & 1
    assert mask[END // 8] >> END % 8 & 1


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        (KINDS.JSON_SCHEMA, "{", "not valid JSON"),
        (KINDS.JSON_SCHEMA, "[1]", "an object or a boolean"),
        (KINDS.JSON_SCHEMA, '{"minimum": NaN}', "NaN"),
        (KINDS.JSON_SCHEMA, "[" * 50_000, "nested too deeply"),
        (KINDS.JSON_SCHEMA, '{"allOf":[' * 100 + "{}" + "]}" * 100, "64 deep"),
        (KINDS.JSON_SCHEMA, '{"$ref": "http://127.0.0.1:1/x.json"}', "only references within"),
        (KINDS.JSON_SCHEMA, '{"properties": {"a": {"$ref": "file:///etc/passwd"}}}', "only references within"),
        (KINDS.JSON_SCHEMA, '{"$ref": "#/$defs/none"}', "does not exist"),
        (KINDS.JSON_SCHEMA, '{"$ref": "#"}', "no text matches"),
        (KINDS.JSON_SCHEMA, '{"type": "object", "const": 1}', "Unsatisfiable"),
        (KINDS.JSON_SCHEMA, "false", "Unsatisfiable"),
        (KINDS.JSON_SCHEMA, '{"not": {"type": "null"}}', "not"),
        (KINDS.JSON_SCHEMA, '{"type": "object", "minProperties": 2}', "minProperties"),
        (KINDS.JSON_SCHEMA, '{"type": "integer", "minimum": 1, "exclusiveMinimum": true}', "draft 6"),
        (KINDS.JSON_SCHEMA, '{"oneOf": [{"minimum": 1}, {"maximum": 5}]}', "oneOf"),
        (KINDS.REGEX, "a(", "regex"),
        (KINDS.REGEX, "a(?=b)", "invalid regex"),
        (KINDS.REGEX, r"(a)\1", "invalid regex"),
        (KINDS.EBNF, "root ::= root", "no text matches"),
        (KINDS.STRUCTURAL_TAG, "3", "wrong type"),
    ],
)
def test_refusals_say_why(factory: MatcherFactory, kind: ConstraintKind, source: str, message: str) -> None:
    with pytest.raises(InvalidConstraint, match=message) as caught:
        checked_grammar(ConstraintSpec(kind, source), factory)
    assert len(caught.value.message) <= 300
    assert "\n" not in caught.value.message


def call_tag(**fields: Any) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    return {"begin": "<f=", "content": {"type": "json_schema", "json_schema": schema}, "end": "</f>"} | fields


@pytest.mark.parametrize(
    ("tag", "good", "bad"),
    [
        (
            {"structures": [{"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"}], "triggers": ["<f="]},
            ["", "no call", "say <f=a>12</f> and <f=a>3</f>.", "<f"],
            ["<f=b>1</f>", "<f=a>x</f>", "<f=a>1"],
        ),
        ({"format": call_tag(type="tag")}, ['<f={"x":1}</f>'], ["", '<f={"x":1}</f>!', "<f={}</f>"]),
        ({"format": {"type": "const_string", "value": "é\n"}}, ["é\n"], ["e", ""]),
        ({"format": {"type": "regex", "pattern": "a+/"}}, ["aa/"], ["a"]),
        ({"format": {"type": "any_text"}}, ["", "x\ny"], []),
        (
            {
                "format": {
                    "type": "sequence",
                    "elements": [
                        {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"},
                        {"type": "or", "elements": [{"type": "const_string", "value": v} for v in ("yes", "no")]},
                    ],
                }
            },
            ["<t>hm, <b></t>yes", "<t></t>no"],
            ["<t>hm</t>", "yes", "<t>a</t>b</t>yes"],
        ),
        (
            {"format": {"type": "triggered_tags", "triggers": ["<|call|>"], "tags": [call_tag(begin="<|call|>f")]}},
            ["text", '<|call|>f{"x":1}</f>', 'a<|call|>f{"x":1}</f>b<|call|>f{"x":2}</f>'],
            ["<|call|>", '<|call|>g{"x":1}</f>'],
        ),
        (
            {
                "format": {
                    "type": "triggered_tags",
                    "triggers": ["<f="],
                    "tags": [call_tag()],
                    "at_least_one": True,
                    "stop_after_first": True,
                }
            },
            ['<f={"x":1}</f>', 'so: <f={"x":1}</f>'],
            ["", 'a <f={"x":1}</f> b'],
        ),
        (
            {"format": {"type": "tags_with_separator", "separator": ";", "tags": [call_tag()], "at_least_one": True}},
            ['<f={"x":1}</f>', '<f={"x":1}</f>;<f={"x":2}</f>'],
            ["", '<f={"x":1}</f>;', "text"],
        ),
    ],
)
def test_structural_tags(factory: MatcherFactory, tag: Any, good: list[str], bad: list[str]) -> None:
    check(factory, KINDS.STRUCTURAL_TAG, tag, good, bad)


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({}, "lacks structures"),
        ({"format": {"type": "qwen_xml_parameter"}}, "'qwen_xml_parameter' is not supported"),
        ({"format": {"type": "sequence", "elements": []}}, "format.elements is empty"),
        ({"format": {"type": "triggered_tags", "triggers": ["<g"], "tags": [call_tag()]}}, "none of the triggers"),
        ({"format": {"type": "triggered_tags", "triggers": [""], "tags": [call_tag()]}}, "must not be empty"),
        ({"format": {"type": "tag", "begin": 3}}, r"format\.begin has the wrong type"),
        ({"structures": [{"begin": "<a"}], "triggers": ["<a"]}, r"structures\[0\] lacks end"),
    ],
)
def test_bad_structural_tags_name_the_place(factory: MatcherFactory, tag: Any, message: str) -> None:
    with pytest.raises(InvalidConstraint, match=message):
        checked_grammar(ConstraintSpec(KINDS.STRUCTURAL_TAG, json.dumps(tag)), factory)


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "a" | "b" # a comment\n', ["a", "b"], ["c", ""]),
        ('root::=x*\nx::="a"', ["", "aa"], ["b"]),
        ('root ::= ("a"{2}){1,2}', ["aa", "aaaa"], ["aaa"]),
        (r'root ::= "\x41\n" [\]\-\\a-c] "\u00e9"', ["A\n]é", "A\n-é", "A\nbé"], ["A\ndé"]),
        ('root ::= "\\"" [^"\\\\]* "\\""', ['"x y"', '""'], ['"', '"a"b"']),
        ('root ::= word "s"\nword ::= [a-r]+', ["cars"], ["car", "s"]),
        ('root ::= e\ne ::= t ("+" t)*\nt ::= [0-9]+ | "(" e ")"', ["1+(2+3)", "42"], ["1+", "(1"]),
        ('root ::= "a" |\n  "b"\n  | ("c"\n "d")', ["a", "b", "cd"], ["bcd"]),
        ('root ::= "x" . "y"?', ["xé", "x\ny"], ["x"]),
        ('root ::= a-b\na-b ::= "1"\na_b ::= "2"', ["1"], ["2"]),
        ('root ::= "<|call|>" "x"', ["<|call|>x"], ["x"]),
    ],
)
def test_ebnf(factory: MatcherFactory, grammar: str, good: list[str], bad: list[str]) -> None:
    check(factory, KINDS.EBNF, grammar, good, bad)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("", "no rule root"),
        ('a ::= "x"', "no rule root"),
        ("root ::= \n missing", "line 2: the rule missing is not defined"),
        ('root ::= "a"\nroot ::= "b"', "line 2: .*twice"),
        ('root ::= "a', "line 1: unexpected character"),
        ('root ::= ("a"', r"expected \)"),
        ('root ::= "a")', r"near '\)'"),
        ('root ::= {2} "a"', "unexpected .2"),
        ('root ::= * "a"', r"unexpected \*"),
        ("root ::= [z-a]", "goes down"),
        ("root ::= []", "empty set"),
        ('root ::= "a"{3,2}', "is empty"),
        (r'root ::= "\uD800"', "no character"),
        (r'root ::= "\x4"', "without its digits"),
        ("root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "64 deep"),
        ('root := "a"', "line 1"),
    ],
)
def test_bad_ebnf_names_the_place(factory: MatcherFactory, grammar: str, message: str) -> None:
    with pytest.raises(InvalidConstraint, match=message):
        checked_grammar(ConstraintSpec(KINDS.EBNF, grammar), factory)


def object_of(count: int, required: int = 0) -> dict[str, Any]:
    names = [f"p{number:03d}" for number in range(count)]
    return {
        "type": "object",
        "properties": {name: {"type": "null"} for name in names},
        "required": names[:required],
    }


def test_as_many_optional_properties_as_can_be_followed(factory: MatcherFactory) -> None:
    """And any number of required ones."""
    most = MAX_OPTIONAL_PROPERTIES
    text = json.dumps({"p003": None, f"p{most - 1}": None})
    check(factory, KINDS.JSON_SCHEMA, object_of(most), ["{}", text], [text[:-1]])
    required = object_of(400 + most, required=400)
    whole = json.dumps({name: None for name in required["properties"]})
    check(factory, KINDS.JSON_SCHEMA, required, [whole], ["{}"])


@pytest.mark.parametrize(
    ("schema", "count"),
    [
        (object_of(500), 500),
        (object_of(140, required=11), 129),
        ({"type": "array", "items": object_of(129)}, 129),
        ({"$defs": {"a": object_of(129)}, "$ref": "#/$defs/a"}, 129),
        ({"anyOf": [object_of(70), {"allOf": [object_of(60)]}]}, 130),
    ],
)
def test_more_optional_properties_are_refused(factory: MatcherFactory, schema: Any, count: int) -> None:
    with pytest.raises(InvalidConstraint, match=f"has {count} properties that are not required, at most 128"):
        checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, json.dumps(schema)), factory)
