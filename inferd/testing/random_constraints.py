"""Random constraints, each with a judge of its outputs that knows nothing of ours: jsonschema, or Python's `re`."""

from __future__ import annotations

import decimal
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jsonschema


@dataclass(frozen=True)
class ConstraintCase:
    """fields: those of inferd.v1.Constraint. check: raises for a text that does not match."""

    fields: dict[str, Any]
    check: Callable[[str], None]


def random_case(seed: int) -> ConstraintCase:
    """Half of them schemas, the others regexes and grammars."""
    choose = random.Random(seed)
    return choose.choice([schema_case, schema_case, regex_case, grammar_case])(choose)


def schema_case(choose: random.Random) -> ConstraintCase:
    schema = random_schema(choose)
    return ConstraintCase({"json_schema": json.dumps(schema)}, must_validate(schema))


def regex_case(choose: random.Random) -> ConstraintCase:
    pattern = random_regex(choose)
    return ConstraintCase({"regex": pattern}, must_match(pattern))


def grammar_case(choose: random.Random) -> ConstraintCase:
    source, pattern = random_grammar(choose)
    return ConstraintCase({"ebnf": source}, must_match(pattern))


def must_validate(schema: Any) -> Callable[[str], None]:
    """Numbers as decimals on both sides: in binary, 1.603646 would be no multiple of 1e-9."""
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(schema), parse_float=decimal.Decimal))
    return lambda text: validator.validate(json.loads(text, parse_float=decimal.Decimal))


def must_match(pattern: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        assert re.fullmatch(pattern, text), f"{text!r} does not match {pattern}"

    return check


def random_schema(choose: random.Random, depth: int = 0) -> dict[str, Any]:
    makers = [string_schema, integer_schema, number_schema, enum_schema, type_schema]
    if depth < 3:
        makers += [object_schema, array_schema, union_schema, object_schema, all_of_schema]
    return choose.choice(makers)(choose, depth)


def string_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    if choose.random() < 0.5:
        schema["minLength"] = choose.randrange(4)
    if choose.random() < 0.5:
        schema["maxLength"] = 3 + choose.randrange(6)
    if choose.random() < 0.3:
        schema["pattern"] = random_regex(choose)
    elif choose.random() < 0.2:
        schema = {"type": "string", "format": choose.choice(["date", "uuid", "ipv4", "time", "x-made-up"])}
    return schema


def integer_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    low = choose.randrange(-200, 200)
    if choose.random() < 0.5:
        schema[choose.choice(["minimum", "exclusiveMinimum"])] = low
    if choose.random() < 0.5:
        schema[choose.choice(["maximum", "exclusiveMaximum"])] = low + choose.randrange(2, 500)
    if choose.random() < 0.2:
        schema["multipleOf"] = choose.choice([2, 3, 7, 10])
    return schema


def number_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    low = choose.choice([-1.5, 0, 0.25, 10])
    return {"type": "number", choose.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + 2.5}


def enum_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    values = [1, -2.5, "a", 'q"uote', "é", None, True, [1, "x"], {"k": [None]}, ""]
    if choose.random() < 0.3:
        return {"const": choose.choice(values)}
    return {"enum": choose.sample(values, choose.randrange(1, 4))}


def type_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    kinds = ["string", "integer", "boolean", "null", "number", "array", "object"]
    return {"type": choose.sample(kinds, choose.randrange(1, 3)), "title": "T", "description": "…"}


def object_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    names = choose.sample(["a", "b", "name", "x1", "x2", 'q"', "é", "a b"], choose.randrange(4))
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: random_schema(choose, depth + 1) for name in names},
        "required": choose.sample([*names, "other"], choose.randrange(len(names) + 1)),
    }
    if choose.random() < 0.6:
        schema["additionalProperties"] = choose.choice([False, {"type": "integer"}, random_schema(choose, depth + 1)])
    if choose.random() < 0.2:
        schema["patternProperties"] = {"^x": random_schema(choose, depth + 1)}
    for key in ("minProperties", "maxProperties", "propertyNames", "dependentRequired"):
        if choose.random() < 0.06:
            value = {"propertyNames": {"pattern": "^[a-z]+$"}, "dependentRequired": {"a": ["b"]}}
            schema[key] = value.get(key, choose.randrange(1, 4))
    return schema


def array_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array", "items": random_schema(choose, depth + 1)}
    if choose.random() < 0.3:
        schema["prefixItems"] = [random_schema(choose, depth + 1) for _ in range(choose.randrange(1, 3))]
        schema["items"] = choose.choice([False, schema["items"]])
    if choose.random() < 0.5:
        schema["minItems"] = choose.randrange(3)
    if choose.random() < 0.5:
        schema["maxItems"] = choose.randrange(2, 4)
    if choose.random() < 0.05:
        schema["uniqueItems"] = True
    return schema


def union_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    branches = [random_schema(choose, depth + 1) for _ in range(choose.randrange(1, 4))]
    if depth == 0 and choose.random() < 0.3:
        return {"$defs": {"it": branches[0]}, "anyOf": [{"$ref": "#/$defs/it"}, {"type": "null"}]}
    schema: dict[str, Any] = {choose.choice(["anyOf", "anyOf", "oneOf"]): branches}
    if choose.random() < 0.1:
        schema["type"] = choose.choice(["object", "string", "integer"])
    return schema


def all_of_schema(choose: random.Random, depth: int) -> dict[str, Any]:
    maker = choose.choice([object_schema, integer_schema, string_schema])
    return {"allOf": [maker(choose, depth + 1), maker(choose, depth + 1)]}


def random_regex(choose: random.Random, depth: int = 0) -> str:
    """Both engines read these alike."""
    atoms = ["a", "b", "[a-f]", "[^x]", r"[0-9]", r"\.", "é", "yes", "(?:no|maybe)", "[A-Z_]", r"\-", " "]
    parts = []
    for _ in range(choose.randrange(1, 5)):
        atom = choose.choice(atoms)
        if depth < 2 and choose.random() < 0.3:
            atom = f"({random_regex(choose, depth + 1)}|{random_regex(choose, depth + 1)})"
        elif len(atom.lstrip("\\")) > 1 and atom[0] not in "[(":
            atom = f"(?:{atom})"
        parts.append(atom + choose.choice(["", "", "", "?", "*", "+", "{2}", "{1,3}"]))
    text = "".join(parts)
    return f"^{text}$" if depth == 0 and choose.random() < 0.5 else text


def random_grammar(choose: random.Random) -> tuple[str, str]:
    """A grammar without recursion, and the regex of the same language."""
    rules: list[tuple[str, str]] = []
    for index in range(choose.randrange(1, 5)):
        options = [grammar_sequence(choose, rules) for _ in range(choose.randrange(1, 3))]
        name = f"part-{index}"
        grammar = " | ".join(option[0] for option in options)
        rules.append((name, "(?:" + "|".join(option[1] for option in options) + ")"))
        rules[-1] = (f"{name} ::= {grammar}", rules[-1][1])
    source = "\n".join([f"root ::= part-{len(rules) - 1} # the last", *(rule for rule, _ in rules)])
    return source, rules[-1][1]


def grammar_sequence(choose: random.Random, rules: list[tuple[str, str]]) -> tuple[str, str]:
    grammar, pattern = [], []
    for _ in range(choose.randrange(1, 4)):
        atoms = [('"ab"', "ab"), ("[a-c]", "[a-c]"), ("[^a-y\\n]", "[^a-y\\n]"), ('"\\"x\\n"', '"x\\n'), ('"é"', "é")]
        atoms += [(rule.split(" ")[0], text) for rule, text in rules]
        left, right = choose.choice(atoms)
        repeat = choose.choice(["", "", "", "?", "*", "+", "{2}", "{1,2}"])
        grammar.append(left + repeat)
        pattern.append(f"(?:{right}){repeat}")
    return " ".join(grammar), "".join(pattern)
