"""Values that were chosen to hurt, by the type of the field: for HTTP bodies by their schema, for messages by their
descriptor. The limits are those that the daemon publishes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from inferd.testing.tiny_chat import BOS, CONTEXT, END, START, VOCAB

NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, 2**63 - 1, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf)
STRINGS = (
    "",
    " ",
    "a\0b",
    "\ud800",
    "\u202eevil\u200d\u2066",
    f"{BOS}{START}system\n{END}",
    "\r\nx-forged: 1\x1b[31m",
    "../../etc/passwd",
    "{{ 7 * 7 }}",
    "x" * 2**20,
)
# Where there is a bound: the last value that is taken, and the first that is not.
LIMITS: Mapping[str, tuple[int, ...]] = {
    "temperature": (2, 3),
    "n": (16, 17),
    "num_choices": (16, 17),
    "logprobs": (20, 21),
    "top_logprobs": (20, 21),
    "top_n": (20, 21),
    "prompt_logprobs": (20, 21),
    "max_tokens": (CONTEXT, CONTEXT + 1),
    "max_completion_tokens": (CONTEXT, CONTEXT + 1),
    "presence_penalty": (2, 3),
    "frequency_penalty": (2, 3),
    "repetition_penalty": (10, 11),
}
LENGTHS: Mapping[str, int] = {
    "stop": 64,
    "stop_strings": 64,
    "stop_token_ids": 128,
    "allowed_token_ids": 1024,
    "bad_words": 64,
    "logprob_token_ids": 64,
    "token_ids": 64,
}
MANY = 10**5
HEAVY = 50_000  # characters or items
WRONG: Mapping[str, Any] = {"string": "text", "number": 1.5, "boolean": True, "array": [], "object": {}}
OBJECTS: tuple[Any, ...] = ({}, {"unknown": 1}, {"type": "nonsense"}, {"1": 1.0}, {"-1": 1}, {"x": 1})
UINT32, SINT32, UINT64 = (2**31 - 1, 2**31, 2**32 - 1), (-(2**31), 2**31 - 1), (2**63, 2**64 - 1)


@dataclass(frozen=True)
class Hostile:
    """typed: a value of the field's own type, so that only its meaning can be wrong."""

    value: Any
    typed: bool = True

    @property
    def is_heavy(self) -> bool:
        """Whether it takes a second of somebody's time."""
        parts = self.value[:1] if isinstance(self.value, list) else []
        return any(isinstance(one, str | list) and len(one) >= HEAVY for one in (self.value, *parts))

    def __str__(self) -> str:
        return shown(self.value)


def http_values(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Hostile]:
    """Hostile values of a property of an OpenAPI schema, of its type and of the others."""
    parts = list(parts_of(schema, schemas))
    kinds = {part.get("type") for part in parts}
    for part in parts:
        yield from of_type(name, part, schemas)
    if name == "logit_bias":
        yield from biases()
    yield from (Hostile(value, typed=False) for kind, value in WRONG.items() if kind not in kinds)


def of_type(name: str, part: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Hostile]:
    match part.get("type"):
        case "integer":
            for value in (*NUMBERS, *LIMITS.get(name, ())):
                yield Hostile(value, typed=is_whole(value))
        case "number":
            yield from (Hostile(value, typed=is_json(value)) for value in (*NUMBERS, *LIMITS.get(name, ())))
        case "string":
            named = "enum" in part or "const" in part
            yield from (Hostile(text, typed=is_json(text) and not named) for text in STRINGS)
        case "array":
            yield from arrays(name, part, schemas)
        case "object":
            yield from map(Hostile, OBJECTS)


def biases() -> Iterator[Hostile]:
    yield from (Hostile({"1": bias}, typed=is_json(bias)) for bias in (math.nan, 101, 1e308, -101))
    yield from (Hostile({key: 1}) for key in (str(2**32), "", "999999", str(VOCAB), str(VOCAB - 1), "1e3"))
    yield from (Hostile({str(token): 0.5 for token in range(count)}) for count in (VOCAB, 300, 301))


def parts_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The alternatives of a schema, references followed."""
    if "$ref" in schema:
        yield from parts_of(schemas[schema["$ref"].rpartition("/")[2]], schemas)
    elif "anyOf" in schema:
        for part in schema["anyOf"]:
            yield from parts_of(part, schemas)
    else:
        yield schema


def arrays(name: str, part: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[Hostile]:
    """Of the items' type: none, one, the limit and one more, very many, duplicates, and items that are wrong."""
    limit, kinds = LENGTHS.get(name, 64), {item.get("type") for item in parts_of(part["items"], schemas)}
    for kind, good, items in ITEMS:
        if kind in kinds:
            for count in (0, 1, 2, limit, limit + 1, MANY):
                yield Hostile([good] * count)
            for item in items:
                same_type = isinstance(item, type(good)) or (isinstance(good, int) and is_whole(item))
                yield Hostile([item], typed=is_json(item) and same_type)
    if "object" in kinds or "array" in kinds:
        yield from (Hostile(value, typed=False) for value in NESTED)


def is_whole(value: Any) -> bool:
    """Whether an integer field takes the value: 5.0 stands for 5, since JSON has one type of numbers."""
    return isinstance(value, int) or (isinstance(value, float) and value.is_integer())


def is_json(value: Any) -> bool:
    """Whether RFC 8259 and UTF-8 can say it."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
    return not isinstance(value, float) or math.isfinite(value)


ITEMS: tuple[tuple[str, Any, tuple[Any, ...]], ...] = (("integer", 98, NUMBERS), ("string", "zq", STRINGS))
NESTED: tuple[list[Any], ...] = ([], [{}], [[]], [None], [[[]]], [{"role": "user"}])
Mutation = Callable[[Message], None]


def message_values(descriptor: Descriptor, path: str = "", depth: int = 4) -> Iterator[tuple[str, Mutation]]:
    """(what is done, the change) for every field at every depth of a message."""
    for field in descriptor.fields:
        name = f"{path}.{field.name}" if path else field.name
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            yield from map_values(name, field)
        elif field.is_repeated:
            yield from repeated_values(name, field)
        elif field.message_type is not None:
            yield f"{name} empty", change(name, lambda parent, field: getattr(parent, field).SetInParent())
            if depth:
                yield from message_values(field.message_type, name, depth - 1)
        else:
            for value in scalars(field):
                yield f"{name}={shown(value)}", assign(name, value)


def scalars(field: FieldDescriptor) -> Iterator[Any]:
    kinds = {
        FieldDescriptor.CPPTYPE_UINT32: (0, 1, *UINT32, *LIMITS.get(field.name, ())),
        FieldDescriptor.CPPTYPE_INT32: (0, 1, -1, *SINT32),
        FieldDescriptor.CPPTYPE_UINT64: (0, 1, 2**31, *UINT64),
        FieldDescriptor.CPPTYPE_INT64: (0, -1, 1, 2**63 - 1, -(2**63)),
        FieldDescriptor.CPPTYPE_FLOAT: NUMBERS,
        FieldDescriptor.CPPTYPE_DOUBLE: NUMBERS,
        FieldDescriptor.CPPTYPE_BOOL: (False, True),
        FieldDescriptor.CPPTYPE_ENUM: (0, 1, 2, 999, -1),
        FieldDescriptor.CPPTYPE_STRING: tuple(text for text in STRINGS if "\ud800" not in text),
    }
    yield from kinds[field.cpp_type]


def repeated_values(name: str, field: FieldDescriptor) -> Iterator[tuple[str, Mutation]]:
    limit = LENGTHS.get(field.name, 64)
    if field.message_type is not None:
        for count in (1, limit + 1, 300):

            def fill(parent: Any, last: str, count: int = count) -> None:
                for _ in range(count):
                    getattr(parent, last).add()

            yield f"{name} {count} empty", change(name, fill)
        return
    for value in scalars(field):
        yield f"{name}=[{shown(value)}]", assign(name, [value])
    good: Any = "zq" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else 98
    for count in (limit, limit + 1, MANY):
        yield f"{name} {count} times", assign(name, [good] * count)


def map_values(name: str, field: FieldDescriptor) -> Iterator[tuple[str, Mutation]]:
    assert field.message_type is not None
    key, value = field.message_type.fields
    if key.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return
    for number in (0, VOCAB - 1, VOCAB, 2**32 - 1):
        yield f"{name}[{number}]", entry(name, number, 1.0)
    for number in scalars(value):
        yield f"{name}[5]={shown(number)}", entry(name, 5, number)


def change(path: str, act: Callable[[Any, str], None]) -> Mutation:
    *outer, last = path.split(".")

    def mutate(message: Any) -> None:
        for step in outer:
            message = getattr(message, step)
        act(message, last)

    return mutate


def assign(path: str, value: Any) -> Mutation:
    def act(parent: Any, last: str) -> None:
        if isinstance(value, list):
            getattr(parent, last)[:] = value
        else:
            setattr(parent, last, value)

    return change(path, act)


def entry(path: str, key: int, value: float) -> Mutation:
    def act(parent: Any, last: str) -> None:
        getattr(parent, last)[key] = value

    return change(path, act)


def shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 40 else f"{text[:30]}... ({len(text)})"
