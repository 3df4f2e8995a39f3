"""Tools of a request: which the model is shown, which it must call, and how it is held to that."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferd.v1 import inference_pb2 as pb
from inferd_gateway.errors import ApiError, invalid
from inferd_gateway.parsers.registry import PLAIN, Frame, ToolFormat
from inferd_gateway.schemas.tools import AllowedTools, NamedTool, Tool, ToolChoice

MAX_TOOLS = 128
MAX_FORCED_CALLS = 32  # in one answer: a model that is held to calls can do nothing else than call again
SCHEMA_FIELD = "tools[].schema"  # in a route's names of fields: what it calls the schema of a tool


@dataclass(frozen=True)
class ToolPlan:
    """shown: for the template. callable: what may be called. forced: one of them must be. one: a single call."""

    shown: tuple[Tool, ...] = ()
    callable: tuple[Tool, ...] = ()
    forced: bool = False
    one: bool = False

    def for_template(self) -> list[dict[str, Any]] | None:
        return [tool.model_dump(exclude_none=True) for tool in self.shown] or None

    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        return {tool.function.name: tool.function.parameters or {} for tool in self.callable}


def plan_tools(tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolPlan:
    """Raises a 400 ApiError."""
    known = checked_tools(tools or ())
    mode = choice if isinstance(choice, str) else ""
    if mode == "none" or (not known and choice in (None, "auto")):
        return ToolPlan()
    if not known:
        raise invalid("tool_choice", "tool_choice needs tools.")
    chosen = tuple(known.values())
    if isinstance(choice, NamedTool):
        chosen = (find(known, choice.function.name),)
    elif isinstance(choice, AllowedTools):
        mode = choice.allowed_tools.mode
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        chosen = tuple(find(known, name) for name in dict.fromkeys(names))
    named = isinstance(choice, NamedTool)
    return ToolPlan(tuple(known.values()), chosen, named or mode == "required", named or parallel is False)


def checked_tools(tools: Sequence[Tool]) -> dict[str, Tool]:
    if len(tools) > MAX_TOOLS:
        raise invalid("tools", f"tools must be at most {MAX_TOOLS}, got {len(tools)}.")
    known: dict[str, Tool] = {}
    for index, tool in enumerate(tools):
        if tool.function.name in known:
            raise invalid(f"tools[{index}].function.name", f"There are two tools named {tool.function.name!r}.")
        known[tool.function.name] = tool
    return known


def find(known: Mapping[str, Tool], name: str) -> Tool:
    if name not in known:
        raise invalid("tool_choice", f"tool_choice: there is no tool named {name[:64]!r}.")
    return known[name]


def format_of_calls(plan: ToolPlan, known: ToolFormat | None) -> ToolFormat | None:
    """The form of the calls: the model's own where it can be forced. Raises a 400 ApiError."""
    if not plan.callable:
        return None
    if plan.forced:
        return known if known is not None and known.frame is not None else PLAIN
    if known is None:
        raise ApiError(
            400,
            "tool_choice 'auto' needs a parser of the model's tool calls, and none is known for this model: start the "
            "gateway with --tool-call-parser, or force the call with tool_choice.",
            param="tools",
            code="unsupported_feature",
        )
    return known


def calls_constraint(plan: ToolPlan, frame: Frame) -> pb.Constraint:
    """Nothing but calls, each with arguments of its tool's schema."""
    tags = {
        "type": "tags_with_separator",
        "tags": [call_tag(tool, frame) for tool in plan.callable],
        "separator": frame.separator,
        "at_least_one": True,
        "stop_after_first": plan.one,
    }
    if not plan.one:
        tags["at_most"] = MAX_FORCED_CALLS
    around = [{"type": "const_string", "value": text} if text else None for text in (frame.before, frame.after)]
    elements = [element for element in (around[0], tags, around[1]) if element]
    return pb.Constraint(structural_tag=json.dumps({"format": {"type": "sequence", "elements": elements}}))


def schema_fields(plan: ToolPlan, frame: Frame, name: str) -> dict[str, str]:
    """Which tool the daemon means when it refuses a part of calls_constraint. name: of a tool's schema, in the body."""
    tags = f"constraint.structural_tag.format.elements[{int(bool(frame.before))}].tags"
    places = {tool.function.name: index for index, tool in enumerate(plan.shown)}
    return {
        f"{tags}[{index}].content.json_schema": f"tools[{places[tool.function.name]}].{name}"
        for index, tool in enumerate(plan.callable)
    }


def call_tag(tool: Tool, frame: Frame) -> dict[str, Any]:
    pieces = frame.begin.split("NAME")
    # Within JSON the name is a string; names hold nothing that would have to be escaped.
    name = f'"{tool.function.name}"' if pieces[0].endswith(": ") else tool.function.name
    schema = tool.function.parameters or {"type": "object"}
    return {
        "type": "tag",
        "begin": name.join(pieces),
        # As with response_format: what cannot be enforced is left out, unless `strict` says otherwise.
        "content": {
            "type": "json_schema",
            "json_schema": {"type": "object", **schema},
            "lenient": not tool.function.strict,
        },
        "end": frame.end,
    }
