"""The two API references of docs/, made from what the product is made of: proto comments and the gateway's OpenAPI.

From a descriptor set or an OpenAPI document to Markdown; tools/gen_docs.py writes and compares the files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)
from grpc_tools import protoc
from inferd_gateway.app import create_app
from inferd_gateway.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
GENERATED = "<!-- Made by `make docs`; change {source} instead. -->"

# Where the parts of a file stand in its descriptor: the numbers of a comment's path.
MESSAGES, ENUMS, SERVICES = 4, 5, 6
MEMBERS = 2  # fields, values and methods alike
NESTED = 3

Scalar = FieldDescriptorProto.Type
REPEATED = FieldDescriptorProto.LABEL_REPEATED


def descriptor_set() -> list[FileDescriptorProto]:
    """The files of proto/, with their comments. Raises RuntimeError when protoc does."""
    protos = sorted(str(path) for path in (ROOT / "proto").rglob("*.proto"))
    includes = [f"-I{ROOT / 'proto'}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        if protoc.main(["protoc", *includes, "--include_source_info", f"--descriptor_set_out={path}", *protos]) != 0:
            raise RuntimeError("protoc failed")
        return list(FileDescriptorSet.FromString(path.read_bytes()).file)


class Comments:
    """The comments of one file by the path of what they stand above."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._texts = {
            tuple(location.path): " ".join(location.leading_comments.split())
            for location in file.source_code_info.location
        }

    def of(self, *path: int) -> str:
        return self._texts.get(path, "").replace("|", "\\|")


def grpc_reference() -> str:
    files = descriptor_set()
    lines = ["# The gRPC API", "", GENERATED.format(source="the comments of proto/inferd/v1"), *GRPC_HEAD]
    for file in sorted(files, key=lambda one: (not one.service, one.name)):
        comments = Comments(file)
        for index, service in enumerate(file.service):
            lines += service_lines(service, comments, index)
    lines += ["## Messages", ""]
    for file in files:
        comments = Comments(file)
        for index, message in enumerate(file.message_type):
            lines += message_lines(message, comments, (MESSAGES, index))
        for index, enum in enumerate(file.enum_type):
            lines += enum_lines(enum, comments, (ENUMS, index))
    return "\n".join(lines).rstrip() + "\n"


GRPC_HEAD = (
    "",
    "The contract is [proto/inferd/v1](../proto/inferd/v1); Python stubs are `inferd.v1`. Every RPC is used once in",
    "[examples](examples). Who may call what is in [security](security.md). `optional` marks a scalar whose unset ",
    "differs from zero; a value at the end of a meaning is the default.",
    "",
)


def service_lines(service: ServiceDescriptorProto, comments: Comments, index: int) -> Iterator[str]:
    yield from (f"## {service.name}", "", comments.of(SERVICES, index), "")
    yield from ("| RPC | request | response | |", "|---|---|---|---|")
    for number, method in enumerate(service.method):
        yield method_row(method, comments.of(SERVICES, index, MEMBERS, number))
    yield ""


def method_row(method: MethodDescriptorProto, comment: str) -> str:
    asked = ("stream of " if method.client_streaming else "") + link(method.input_type)
    answered = ("stream of " if method.server_streaming else "") + link(method.output_type)
    return f"| `{method.name}` | {asked} | {answered} | {comment} |"


def message_lines(message: DescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from heading(message.name, comments.of(*path))
    if message.field:
        yield from ("| field | type | meaning |", "|---|---|---|")
    entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
    for number, field in enumerate(message.field):
        meaning = comments.of(*path, MEMBERS, number)
        if field.HasField("oneof_index") and not field.proto3_optional:
            meaning = f"one of `{message.oneof_decl[field.oneof_index].name}`. {meaning}".rstrip()
        yield f"| `{field.name}` | {type_of(field, entries)} | {meaning} |"
    if message.field:
        yield ""
    for number, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:
            yield from message_lines(nested, comments, (*path, NESTED, number))


def enum_lines(enum: EnumDescriptorProto, comments: Comments, path: tuple[int, ...]) -> Iterator[str]:
    yield from heading(enum.name, comments.of(*path))
    yield from ("| value | number | meaning |", "|---|---|---|")
    for number, value in enumerate(enum.value):
        yield f"| `{value.name}` | {value.number} | {comments.of(*path, MEMBERS, number)} |"
    yield ""


def heading(name: str, meaning: str) -> list[str]:
    return [f"### {name}", "", *([meaning, ""] if meaning else [])]


def type_of(field: FieldDescriptorProto, entries: dict[str, DescriptorProto]) -> str:
    short = field.type_name.rpartition(".")[2]
    if short in entries:
        key, value = (type_of(part, {}) for part in entries[short].field)
        return f"map of {key} to {value}"
    name = link(field.type_name) if field.type_name else Scalar.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def link(type_name: str) -> str:
    """`.inferd.v1.Prompt` links to its table; a type of others is only named."""
    name = type_name.rpartition(".")[2]
    return f"[{name}](#{name.lower()})" if type_name.startswith(".inferd.v1.") else f"`{type_name.lstrip('.')}`"


def http_document() -> dict[str, Any]:
    document: dict[str, Any] = create_app(Settings(backend=("127.0.0.1:1",))).openapi()
    return document


def http_reference() -> str:
    document = http_document()
    schemas: dict[str, Any] = document["components"]["schemas"]
    lines = [
        "# The HTTP API, field by field",
        "",
        GENERATED.format(source="gateway/inferd_gateway/schemas"),
        *HTTP_HEAD,
    ]
    lines += ["| route | | body | reply |", "|---|---|---|---|"]
    bodies: list[dict[str, Any]] = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body, reply = json_of(operation.get("requestBody", {})), json_of(operation["responses"].get("200", {}))
            bodies += [body, reply]
            said = one_line(operation.get("description", ""))
            lines.append(f"| `{method.upper()} {path}` | {said} | {linked(body)} | {linked(reply)} |")
    lines += ["", "## Bodies and replies", ""]
    for name in with_parts(list(references(bodies)), schemas):
        lines += schema_lines(name, schemas[name])
    return "\n".join(lines).rstrip() + "\n"


def json_of(part: dict[str, Any]) -> dict[str, Any]:
    schema: dict[str, Any] = part.get("content", {}).get("application/json", {}).get("schema", {})
    return schema


def linked(schema: dict[str, Any]) -> str:
    return shape(schema) if any(references(schema)) else ""


HTTP_HEAD = (
    "",
    "What the routes do is in [the HTTP API](openai-api.md), where they differ from vLLM's in",
    "[coming from vLLM](migration-from-vllm.md). A value at the end of a meaning is the default. The same by machine:",
    "`GET /openapi.json` of a running gateway.",
    "",
)


def with_parts(names: Sequence[str], schemas: dict[str, Any]) -> list[str]:
    """`names` and every schema that they refer to, each once, in the order of first use."""
    found: dict[str, None] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += references(schemas[name])
    return list(found)


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"].rpartition("/")[2]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def schema_lines(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from heading(name, one_line(schema.get("description", "")))
    if "properties" not in schema:
        yield from (f"One of {shape(schema)}.", "")
        return
    yield from ("| field | type | meaning |", "|---|---|---|")
    for field, part in schema["properties"].items():
        needed = ", required" if field in schema.get("required", ()) else ""
        yield f"| `{field}` | {shape(part)}{needed} | {one_line(part.get('description', ''))} |"
    yield ""


def shape(part: dict[str, Any]) -> str:
    """A JSON Schema's type in words; null, which every optional field takes, is left out."""
    if "$ref" in part:
        name = part["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    members = part.get("anyOf") or part.get("oneOf")
    if members:
        return " or ".join(shape(member) for member in members if member.get("type") != "null")
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "const" in part:
        return f"`{part['const']}`"
    if part.get("type") == "array":
        return f"list of {shape(part.get('items', {}))}" + bounds(part, "minItems", "maxItems")
    return str(part.get("type", "any")) + bounds(part, "minimum", "maximum") + bounds(part, "minLength", "maxLength")


def bounds(part: dict[str, Any], low: str, high: str) -> str:
    """`, at least 1, at most 1024`; the bounds of 64-bit integers say nothing and are left out."""
    words = {"at least": part.get(low), "at most": part.get(high)}
    found = [f"{word} {value:g}" for word, value in words.items() if value is not None and abs(value) < 2**31 - 1]
    return f" ({', '.join(found)})" if found else ""


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
