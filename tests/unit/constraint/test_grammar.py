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


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("const", "9007199254740993"),
        ("const", "18446744073709551615"),
        ("const", "0.1000000000000000055"),
        ("const", "123456789012345.67"),
        ("const", "1e400"),
        ("const", '{"a": [1, 9007199254740993]}'),
        ("enum", "[1, 9007199254740993]"),
        ("minimum", "9007199254740993"),
        ("maximum", "1e19"),
        ("minimum", "-9223372036854775808"),
        ("exclusiveMaximum", "123456789012345.67"),
        ("exclusiveMinimum", "9" * 5000),
        ("multipleOf", "-2"),
        ("multipleOf", "0"),
        ("minLength", "4294967297"),
        ("const", r'"a\u0001b"'),
        ("const", r'"a\u007fb"'),
        ("enum", r'["a", ["b\u0000"]]'),
        ("pattern", r'"^a\u0001b$"'),
        ("pattern", r'"^a\\x01b$"'),
        ("pattern", r'"^a\\u0001*b$"'),
        ("pattern", r'"^a[\\x7f]b$"'),
        ("pattern", r'"^a\\vb$"'),
        ("patternProperties", r'{"^a\\x01b$": {}}'),
    ],
)
def test_what_the_library_would_enforce_nearly_is_refused_by_name(
    factory: MatcherFactory, keyword: str, value: str
) -> None:
    """And left out where the caller asked for a best effort."""
    schema = f'{{"items": {{"{keyword}": {value}}}, "type": "array"}}'
    with pytest.raises(InvalidConstraint, match=f"^{keyword}: ") as caught:
        checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, schema), factory)
    assert len(caught.value.message) < 200

    lenient = checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, schema, lenient=True), factory)
    assert takes(factory, lenient, '[9007199254740992,"ab"]')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ('{"const": 9007199254740992}', ["9007199254740992"], ["9007199254740991"]),
        ('{"const": -0.1}', ["-0.1"], ["0.1"]),
        ('{"enum": [1e2, 12345678.9012345]}', ["100", "12345678.9012345"], ["1", "12345678.901234"]),
        (
            '{"type": "integer", "minimum": -9007199254740992, "maximum": 9007199254740992}',
            ["9007199254740992", "-9007199254740992"],
            ["9007199254740993", "-9007199254740993"],
        ),
        ('{"type": "integer", "maximum": 1e18}', ["1000000000000000000"], ["1000000000000000001"]),
        ('{"type": "number", "minimum": 12345678901.2345}', ["12345678901.2345"], ["12345678901.2344"]),
        ('{"type": "array", "items": {}, "minItems": 1.0, "maxItems": 2.0}', ["[1]", "[1,1]"], ["[]", "[1,1,1]"]),
        ('{"type": "string", "maxLength": 5000000000}', ['"a"'], ["1"]),
        ('{"type": "string", "pattern": "^[^\\\\x00-\\\\x1f]+$"}', ['"a"'], ['""', '"\\n"']),
        ('{"type": "string", "pattern": "^[\\\\x01c]$"}', ['"c"'], ['""']),
        ('{"type": "integer", "default": 1e999, "examples": [18446744073709551616.5]}', ["1"], ["1.5"]),
        (
            r'{"type": "object", "properties": {"a\u0001": {}}, "required": ["a\u0001"]}',
            [r'{"a\u0001":1}'],
            ['{"a":1}'],
        ),
    ],
)
def test_what_is_exact_is_enforced(factory: MatcherFactory, schema: str, good: list[str], bad: list[str]) -> None:
    check(factory, KINDS.JSON_SCHEMA, schema, good, bad)


@pytest.mark.parametrize(
    ("schema", "prefix"),
    [
        ({"type": "number"}, "1."),
        ({"type": "integer"}, "1"),
        ({"type": "number", "minimum": 0, "maximum": 3}, "1."),
        ({"type": "array", "items": {"type": "number"}}, "[2,1."),
        ({"type": "object"}, '{"a":{"b":1e1'),
    ],
)
def test_numbers_end(factory: MatcherFactory, schema: Any, prefix: str) -> None:
    """A model that would go on with zeros for ever is stopped, where the number may end."""
    matcher = factory.matcher(checked_grammar(ConstraintSpec(KINDS.JSON_SCHEMA, json.dumps(schema)), factory))
    for token in prefix.encode():
        matcher.advance(token)
    written = len(prefix)
    while matcher.mask()[ord("0") // 8] >> ord("0") % 8 & 1:
        matcher.fork()
        matcher.advance(ord("0"))
        written += 1
        assert written < 60
    assert written > 35
    assert any(matcher.mask())
    assert matcher.fork().mask() == matcher.mask()


def test_digits_that_are_no_number_go_on(factory: MatcherFactory) -> None:
    digits = "1" + "0" * 200
    check(factory, KINDS.JSON_SCHEMA, {"type": "string", "pattern": "^[0-9,]*$"}, [f'"{digits}"'], [])
    check(factory, KINDS.JSON_SCHEMA, {"const": 10**200}, [digits], [])
    check(factory, KINDS.REGEX, r"\d+\n?", [digits], [])
    tag = {
        "format": {"type": "sequence", "elements": [{"type": "json_schema", "json_schema": {}}, {"type": "any_text"}]}
    }
    check(factory, KINDS.STRUCTURAL_TAG, tag, [f'"a"b{digits}'], [])


def test_white_space_is_bounded(factory: MatcherFactory) -> None:
    good = "{\n" + " " * 20 + '"a":\t1}'
    check(factory, KINDS.JSON_OBJECT, "{}", [good], [good.replace("\n", "\n "), '{ \n"a":1}'])


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        (KINDS.EBNF, 'root ::= "a"{1,' + "9" * 5000 + "}", "line 1: a repetition of 9+… is more than 100000"),
        (KINDS.EBNF, 'root ::= "a"{' + "9" * 5000 + ",}", "more than 100000"),
        (KINDS.EBNF, 'root ::= "a"{100001}', "more than 100000"),
        (KINDS.EBNF, 'root ::= "a"{٣}', "unexpected character"),
        (KINDS.REGEX, "a{" + "9" * 50 + "}", "number.*too large|decimal literal invalid"),
        (KINDS.JSON_SCHEMA, '{"pattern": "a{' + "9" * 50 + '}"}', "decimal literal invalid"),
        (KINDS.JSON_SCHEMA, '{"minimum": 1e' + "9" * 50 + "}", "the exponent of 1e9+… is too large"),
        (KINDS.JSON_SCHEMA, '{"maxLength": 1e' + "9" * 50 + "}", "the exponent of 1e9+… is too large"),
        (KINDS.JSON_SCHEMA, '{"minItems": ' + "9" * 5000 + "}", "minItems: 9+… is more than"),
        (KINDS.CHOICES, r'["a\ud800"]', "U\\+D800 alone is no character"),
        (KINDS.JSON_SCHEMA, r'{"const": "a\ud800b"}', "U\\+D800 alone is no character"),
        (KINDS.STRUCTURAL_TAG, r'{"format": {"type": "const_string", "value": "\udfff"}}', "U\\+DFFF alone"),
    ],
)
def test_sizes_beyond_all_measure_are_named(
    factory: MatcherFactory, kind: ConstraintKind, source: str, message: str
) -> None:
    with pytest.raises(InvalidConstraint, match=message):
        checked_grammar(ConstraintSpec(kind, source), factory)


def test_a_repetition_that_never_happens(factory: MatcherFactory) -> None:
    check(factory, KINDS.EBNF, 'root ::= "a"{0} "b"{0,0} "c"{00,' + "0" * 5000 + "1}", ["", "c"], ["a", "b"])


def test_calls_are_bounded_and_lenient_where_it_is_said(factory: MatcherFactory) -> None:
    schema = {"type": "array", "items": {"type": "null"}, "uniqueItems": True}
    content = {"type": "json_schema", "json_schema": schema, "lenient": True}
    tags = {"type": "tags_with_separator", "separator": ";", "tags": [call_tag(content=content, type="tag")]}
    few = {"format": tags | {"at_least_one": True, "at_most": 3}}
    one, many = "<f=[null]</f>", ";".join(["<f=[null,null]</f>"] * 4)
    check(factory, KINDS.STRUCTURAL_TAG, few, [one, many[: 3 * len(many) // 4]], ["", many])
    check(factory, KINDS.STRUCTURAL_TAG, {"format": tags | {"at_most": 1}}, ["", one], [f"{one};{one}"])
    for field, value, message in (
        ("at_most", 0, r"format\.at_most must be an integer from 1 to 1024, got 0"),
        ("at_most", 10**30, "format.at_most must be an integer"),
        ("at_most", True, "got True"),
        ("at_least_one", "no", r"format\.at_least_one has the wrong type str"),
    ):
        with pytest.raises(InvalidConstraint, match=message):
            checked_grammar(
                ConstraintSpec(KINDS.STRUCTURAL_TAG, json.dumps({"format": tags | {field: value}})), factory
            )
