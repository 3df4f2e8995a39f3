"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from inferd_gateway.schemas.common import MAX_MESSAGES, Body, FunctionName, Positive, UInt32
from inferd_gateway.schemas.tools import ToolBody


class Block(Body):
    """A block of any type; which fields it needs depends on the type."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    cache_control: dict[str, Any] | None = None
    citations: list[Any] | None = None


class InputMessage(Body):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class InputTool(ToolBody):
    """A tool that the caller runs. Anthropic's own, which have types of their own, are refused."""

    types: ClassVar[tuple[str, ...]] = ("custom",)

    name: FunctionName
    input_schema: dict[str, Any]
    """JSON Schema of the arguments."""
    description: str | None = None
    """Shown to the model."""
    type: Literal["custom"] | None = None
    strict: bool | None = None
    """Accepted; changes nothing that comes back. Forced calls always match the schema."""
    cache_control: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back. The prefix cache is automatic."""


class InputToolChoice(Body):
    type: Literal["auto", "any", "tool", "none"]
    """any forces a call, tool the named one."""
    name: str | None = None
    """With type tool."""
    disable_parallel_tool_use: bool | None = None
    """At most one call, where calls are forced."""


class Thinking(Body):
    """budget_tokens and display are read and not enforced: a model ends its reasoning by itself."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Positive | None = None
    display: str | None = None


class OutputFormat(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")
    """JSON Schema of the output. What cannot be enforced is refused."""


class OutputConfig(Body):
    format: OutputFormat | None = None
    """The form of the output."""
    effort: str | None = None
    """Given to the template as reasoning_effort."""


class CountTokensRequest(Body):
    """What shapes the prompt."""

    model: str
    """A served name or alias."""
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The conversation, oldest first; a last message of the assistant is continued."""
    system: str | list[Block] | None = None
    """The system message."""
    tools: list[InputTool] | None = None
    """At most 128."""
    tool_choice: InputToolChoice | None = None
    """auto where there are tools."""
    thinking: Thinking | None = None
    """Unset or disabled: the template's enable_thinking is false."""
    output_config: OutputConfig | None = None
    """The form of the output, and the effort."""


class MessagesRequest(CountTokensRequest):
    max_tokens: Positive
    """Most tokens to generate; where the context leaves room for fewer, those."""
    stop_sequences: list[str] | None = None
    """Texts that end the output."""
    stream: bool | None = None
    """Server-sent events, from message_start to message_stop."""
    temperature: float | None = None
    """As for chat completions."""
    top_p: float | None = None
    """As for chat completions."""
    top_k: UInt32 | None = None
    """0: all tokens."""
    # Accepted: they change nothing that comes back.
    metadata: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back."""
    service_tier: str | None = None
    """Accepted; changes nothing that comes back."""
