"""Structural tags, as xgrammar and vLLM define them: text with constrained parts -> the library's dialect of Lark.

Two forms: {"format": F} with F nested formats, and the older {"structures": [{begin, schema, end}], "triggers": [..]}.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from inferd.constraint.exactness import shortened
from inferd.constraint.lark import ANY_TEXT, COMMENT, HEADER, json_text, literal, regex
from inferd.constraint.schema import checked_schema
from inferd.errors import InvalidConstraint

MAX_DEPTH = 16
MAX_TAGS = 1024


def structural_tag_to_lark(tag: Any, special_texts: Sequence[tuple[str, int]]) -> str:
    """Raises InvalidConstraint naming the place."""
    return Writer(special_texts).write(tag)


class Writer:
    """Writes one rule per format."""

    def __init__(self, special_texts: Sequence[tuple[str, int]]) -> None:
        self._special_texts = special_texts
        self._rules: list[str] = []

    def write(self, tag: Any) -> str:
        expect(tag, dict, "the structural tag")
        if "format" in tag:
            start = self._format(tag["format"], "format", 0)
        else:
            structures = field(tag, "structures", list, "the structural tag")
            tags = [
                {
                    "begin": field(each, "begin", str, f"structures[{index}]"),
                    "content": {"type": "json_schema", "json_schema": each.get("schema", {})},
                    "end": field(each, "end", str, f"structures[{index}]"),
                }
                for index, each in enumerate(structures)
                if expect(each, dict, f"structures[{index}]") is not None
            ]
            triggers = field(tag, "triggers", list, "the structural tag")
            start = self._triggered({"triggers": triggers, "tags": tags}, "structures", 0)
        return HEADER + f"start: {start}\n" + "".join(f"{rule}\n" for rule in self._rules)

    def _rule(self, body: str, attributes: str = "") -> str:
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {body}")
        return name

    def _placed(self, body: str, path: str) -> str:
        """A rule with its place in a comment (matcher.place_of)."""
        name = f"part_{len(self._rules)}"
        self._rules.append(f"{COMMENT}{path}\n{name}: {body}")
        return name

    def _format(self, node: Any, path: str, depth: int) -> str:
        """An expression for one format."""
        kind = field(expect(node, dict, path), "type", str, path)
        if depth > MAX_DEPTH:
            raise InvalidConstraint(f"{path}: nested more than {MAX_DEPTH} deep")
        match kind:
            case "const_string":
                return self._literal(field(node, "value", str, path))
            case "json_schema":
                schema, lenient = field(node, "json_schema", (dict, bool), path), flag(node, "lenient", path)
                with at_place(f"{path}.json_schema"):
                    return self._placed(json_text(checked_schema(schema, lenient), lenient), f"{path}.json_schema")
            case "regex":
                return self._placed(regex(field(node, "pattern", str, path)), f"{path}.pattern")
            case "any_text":
                return ANY_TEXT
            case "sequence":
                return " ".join(f"({each})" for each in self._elements(node, path, depth))
            case "or":
                return " | ".join(f"({each})" for each in self._elements(node, path, depth))
            case "tag":
                return self._tag(node, path, depth)
            case "triggered_tags":
                return self._triggered(node, path, depth)
            case "tags_with_separator":
                return self._separated(node, path, depth)
        raise InvalidConstraint(f"{path}: the format {kind!r} is not supported")

    def _elements(self, node: Any, path: str, depth: int) -> list[str]:
        elements = field(node, "elements", list, path)
        if not elements:
            raise InvalidConstraint(f"{path}.elements is empty")
        return [self._format(each, f"{path}.elements[{i}]", depth + 1) for i, each in enumerate(elements)]

    def _tag(self, node: Any, path: str, depth: int, skip: int = 0) -> str:
        """begin, content, end; the first `skip` characters of begin are there already."""
        begin, end = field(node, "begin", str, path), field(node, "end", str, path)
        content = field(node, "content", dict, path)
        head = [self._literal(begin[skip:])] if begin[skip:] else []
        if content.get("type") == "any_text" and end:
            # Up to the first occurrence of the end.
            return " ".join([*head, self._rule(f"{ANY_TEXT} {self._literal(end)}", "[lazy]")])
        tail = [self._literal(end)] if end else []
        return " ".join([*head, f"({self._format(content, f'{path}.content', depth + 1)})", *tail]) or '""'

    def _triggered(self, node: Any, path: str, depth: int) -> str:
        """Free text; after a trigger, one of the tags that begin with it."""
        triggers, tags = field(node, "triggers", list, path), field(node, "tags", list, path)
        if not triggers or not tags or not all(isinstance(each, str) and each for each in triggers):
            raise InvalidConstraint(f"{path}: triggers and tags must not be empty")
        options: list[str] = []
        for trigger in triggers:
            bodies = [
                self._tag(tag, f"{path}.tags[{index}]", depth, len(trigger))
                for index, tag in enumerate(tags)
                if field(expect(tag, dict, f"{path}.tags"), "begin", str, f"{path}.tags").startswith(trigger)
            ]
            if bodies:
                alternatives = " | ".join(f"({body})" for body in bodies)
                options.append(f"{self._up_to(trigger)} ({alternatives})")
        covered = {tag["begin"] for tag in tags for trigger in triggers if tag["begin"].startswith(trigger)}
        for index, tag in enumerate(tags):
            if tag["begin"] not in covered:
                raise InvalidConstraint(f"{path}.tags[{index}].begin starts with none of the triggers")
        one = self._rule(" | ".join(f"({option})" for option in options))
        at_least_one = flag(node, "at_least_one", path)
        if flag(node, "stop_after_first", path):
            return one if at_least_one else f"{one} | {ANY_TEXT}"
        return f"{one}{'+' if at_least_one else '*'} {ANY_TEXT}"

    def _up_to(self, trigger: str) -> str:
        """Free text up to the first occurrence of the trigger. A control token cannot be part of a lexeme."""
        token = next((token for text, token in self._special_texts if text == trigger), None)
        if token is not None:
            return f"{ANY_TEXT} <[{token}]>"
        return self._rule(f"{ANY_TEXT} {self._literal(trigger)}", "[lazy]")

    def _separated(self, node: Any, path: str, depth: int) -> str:
        """Tags with a separator between them, and nothing else. at_most, which is ours, bounds their number."""
        tags, separator = field(node, "tags", list, path), field(node, "separator", str, path)
        if not tags:
            raise InvalidConstraint(f"{path}.tags is empty")
        bodies = [self._tag(tag, f"{path}.tags[{index}]", depth + 1) for index, tag in enumerate(tags)]
        one = self._rule(" | ".join(f"({body})" for body in bodies))
        at_most = node.get("at_most")
        if at_most is not None and not (type(at_most) is int and 1 <= at_most <= MAX_TAGS):
            raise InvalidConstraint(f"{path}.at_most must be an integer from 1 to {MAX_TAGS}, got {shortened(at_most)}")
        if flag(node, "stop_after_first", path) or at_most == 1:
            more = ""
        else:
            more = f" ({self._literal(separator)} {one}){'*' if at_most is None else f'{{0,{at_most - 1}}}'}"
        return f"{one}{more}" if flag(node, "at_least_one", path) else f"({one}{more})?"

    def _literal(self, text: str) -> str:
        return literal(text, self._special_texts)


@contextmanager
def at_place(path: str) -> Iterator[None]:
    """Give an InvalidConstraint its place."""
    try:
        yield
    except InvalidConstraint as error:
        raise InvalidConstraint(error.message, field=path) from None


def expect(value: Any, kind: type | tuple[type, ...], path: str) -> Any:
    if not isinstance(value, kind):
        raise InvalidConstraint(f"{path} has the wrong type {type(value).__name__}")
    return value


def field(node: Any, name: str, kind: type | tuple[type, ...], path: str) -> Any:
    if name not in node:
        raise InvalidConstraint(f"{path} lacks {name}")
    return expect(node[name], kind, f"{path}.{name}")


def flag(node: Any, name: str, path: str) -> bool:
    return bool(node.get(name) is not None and expect(node[name], bool, f"{path}.{name}"))
