"""Constraints that were written to hurt: what they try is a name, what they are the fields of inferd.v1.Constraint."""

from __future__ import annotations

import json
from typing import Any


def hostile_constraints() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {}
    for number, pattern in enumerate(HOSTILE_REGEXES):
        cases[f"regex {number}: {pattern[:24]}"] = {"regex": pattern}
    for number, grammar in enumerate(HOSTILE_GRAMMARS):
        cases[f"ebnf {number}: {grammar[:32]}"] = {"ebnf": grammar}
    for name, schema in hostile_schemas().items():
        cases[f"schema: {name}"] = {"json_schema": schema if isinstance(schema, str) else json.dumps(schema)}
    for name, tag in HOSTILE_TAGS.items():
        cases[f"tag: {name}"] = {"structural_tag": json.dumps(tag)}
    cases["choices: 10^5"] = {"choices": {"values": [f"choice {number}" for number in range(100_000)]}}
    cases["choices: one long"] = {"choices": {"values": ["x" * 60_000]}}
    return cases


HOSTILE_REGEXES = (
    "(a+)+b",
    "(a|a)*b",
    "((a|aa)*){1,50}b",
    "a{1,100000}",
    "(a{1,1000}){1,1000}",
    "((a{1,100}){1,100}){1,100}",
    ".*a.{20}",
    "(.*a.{200}){20}",
    "[a-z]{1,5000}" * 5,
    r"(\w*\d){100}",
    r"(\p{L}{1,500}\P{L}{1,500}){1,200}",
    "|".join(f"word{number}x" for number in range(400)),
    "(" * 2000 + "a" + ")" * 2000,
    "(a?){1000}a{1000}",
    "(.|\\n)*" * 400,
    "x" * 5000,
)
HOSTILE_GRAMMARS = (
    "root ::= root",
    'root ::= root root | "a" | ""',
    'root ::= root "a" | "a"',
    'root ::= "a"{1,100000}',
    'root ::= (("a"{1,1000}){1,1000}){1,1000}',
    "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000,
    "\n".join(["root ::= r0", *(f"r{n} ::= r{n + 1} r{n + 1}" for n in range(40)), 'r40 ::= "a"']),
    "\n".join(["root ::= r0", *(f"r{n} ::= r{n + 1} | r{n + 1}" for n in range(300)), 'r300 ::= "a"']),
    "root ::= " + " | ".join(f'"w{n}"' for n in range(5000)),
    "root ::= " + " ".join("[a-z]*" for _ in range(2000)),
    'root ::= "a"?' + ' "a"?' * 3000,
    "root ::= [^a]* [^b]* [^c]* [^d]* root | [^e]",
    "root ::= [" + "".join(f"\\u{code:04x}" for code in range(0x100, 0x2000)) + "]",
)
HOSTILE_TAGS: dict[str, Any] = {
    "nested 5000 deep": json.loads('{"format":' + '{"type":"or","elements":[' * 200 + "1" + "]}" * 200 + "}"),
    "2000 tags": {
        "triggers": ["<"],
        "structures": [{"begin": f"<{number}>", "schema": {}, "end": ""} for number in range(1200)],
    },
    "any text in any text": {
        "format": {"type": "sequence", "elements": [{"type": "any_text"} for _ in range(1000)]},
    },
}


def hostile_schemas() -> dict[str, Any]:
    any_of: Any = {"type": "integer"}
    for depth in range(12):
        any_of = {"anyOf": [any_of, {"type": "string", "maxLength": depth + 1}, any_of]}
    product = [
        {"anyOf": [{"type": "object", "properties": {f"k{i}{j}": {"type": "integer"}}} for j in range(4)]}
        for i in range(10)
    ]
    pair = {f"d{n}": {"prefixItems": [{"$ref": f"#/$defs/d{n - 1}"}] * 2, "minItems": 2} for n in range(1, 31)}
    return {
        "allOf 10000 deep": '{"allOf":[' * 5000 + "{}" + "]}" * 5000,
        "brackets": "[" * 60_000,
        "refers to itself": {"$ref": "#"},
        "ref cycle": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
        "anyOf itself": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        "recursive without an end": {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        "enum of 10^5": {"enum": list(range(100_000))},
        "enum of 6000": {"enum": [f"value {number}" for number in range(5500)]},
        "10^5 properties": {"type": "object", "properties": {f"p{number}": {} for number in range(100_000)}},
        "4000 properties": {"type": "object", "properties": {f"p{number}": {} for number in range(4000)}},
        "500 optional": {"type": "object", "properties": {f"p{n}": {"type": "integer"} for n in range(500)}},
        "minItems 10^9": {"type": "array", "minItems": 10**9},
        "maxItems 10^6": {"type": "array", "maxItems": 10**6, "items": {"type": "string"}},
        "minLength 10^6": {"type": "string", "minLength": 10**6},
        "maxLength 10^9": {"type": "string", "maxLength": 10**9},
        "minProperties 10^5": {"type": "object", "minProperties": 10**5},
        "maxProperties 10^5": {"type": "object", "maxProperties": 10**5},
        "nested anyOf": any_of,
        "nested oneOf": {"oneOf": [{"oneOf": [{"minimum": n}, {"maximum": n}]} for n in range(50)]},
        "allOf of anyOf": {"allOf": product},
        "a tree of 2^30": {"$ref": "#/$defs/d30", "$defs": {"d0": {"type": "null"}, **pair}},
        "quadratic pattern": {"type": "string", "pattern": "^(a+)+$"},
        "big pattern": {"type": "string", "pattern": "^(.{1,1000}){1,100}$"},
        "300 patterns": {"patternProperties": {f"^.*{number}.*$": {"type": "null"} for number in range(300)}},
        "pattern and lengths": {"type": "string", "pattern": "(.*a){50}", "minLength": 5000, "maxLength": 9000},
        "tiny multiple": {"type": "number", "multipleOf": 1e-9},
        "huge bounds": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
        "huge number": '{"type": "integer", "maximum": 1' + "0" * 5000 + "}",
        "contradiction": {"type": "object", "const": 1},
        "remote reference": {"$ref": "http://127.0.0.1:1/schema.json"},
        "file reference": {"$ref": "file:///etc/passwd"},
        "remote id": {"$id": "http://127.0.0.1:1/a", "$ref": "other.json"},
        "lone surrogate": '{"const": "\\ud800"}',
        "duplicate keys": '{"type": "string", "type": "integer", "type": ["null", "null"]}',
        "wrong types": {"type": 5, "properties": [], "items": "x", "enum": {}, "pattern": 3, "required": "a"},
        "option injection": {"type": "string", "x-guidance": {"whitespace_pattern": "(a+)+", "lenient": True}},
    }
