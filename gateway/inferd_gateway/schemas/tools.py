"""Tools in requests, in the shapes of chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import Body

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Body):
    name: FunctionName
    description: str | None = None
    """Shown to the model."""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """Accepted; changes nothing that comes back. Forced calls always match the schema."""


class Tool(Body):
    type: Literal["function"]
    function: Function


class FunctionReference(Body):
    name: str


class NamedTool(Body):
    type: Literal["function"]
    function: FunctionReference


class AllowedList(Body):
    mode: Literal["auto", "required"]
    """required forces one of them."""
    tools: Annotated[list[NamedTool], Field(min_length=1)]
    """Which of the tools may be called."""


class AllowedTools(Body):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedList


ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedTools
