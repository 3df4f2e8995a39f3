"""Tools in requests, in the shapes of chat completions."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from inferd_gateway.schemas.common import Body, FunctionName


class ToolBody(Body):
    """A tool of one of `types`. Any other is refused by its name, whatever else it has or lacks."""

    types: ClassVar[tuple[str, ...]] = ("function",)

    @model_validator(mode="before")
    @classmethod
    def check_type(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in cls.types:
            known = " and ".join(cls.types)
            raise PydanticCustomError(
                "tool_type",
                "tools of type {kind} are not supported, only those of type {known}, which the caller runs",
                {"kind": repr(kind[:64]), "known": known, "field": "type"},
            )
        return value


class Function(Body):
    name: FunctionName
    description: str | None = None
    """Shown to the model."""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """true: a forced call is refused when its schema cannot be enforced whole. Otherwise what cannot be is left out."""


class Tool(ToolBody):
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
