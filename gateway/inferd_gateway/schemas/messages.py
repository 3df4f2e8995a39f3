"""POST /v1/messages and /v1/messages/count_tokens, as Anthropic has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import Body


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
    role: Literal["user", "assistant"]
    content: str | list[Block]


class InputTool(Body):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
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
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: str | None = None


class CountTokensRequest(Body):
    """What shapes the prompt."""

    model: str
    """A served name or alias."""
    messages: Annotated[list[InputMessage], Field(min_length=1, max_length=1024)]
    """The conversation, oldest first; a last message of the assistant is continued."""
    system: str | list[Block] | None = None
    """The system message."""
    tools: list[InputTool] | None = None
    """At most 128."""
    tool_choice: InputToolChoice | None = None
    """auto where there are tools."""
    thinking: Thinking | None = None
    """Unset or disabled: the template's enable_thinking is false."""


class MessagesRequest(CountTokensRequest):
    max_tokens: Annotated[int, Field(ge=1, le=2**32 - 1)]
    """Most tokens to generate."""
    stop_sequences: list[str] | None = None
    """Texts that end the output."""
    stream: bool | None = None
    """Server-sent events, from message_start to message_stop."""
    temperature: float | None = None
    """As for chat completions."""
    top_p: float | None = None
    """As for chat completions."""
    top_k: Annotated[int, Field(ge=0, le=2**32 - 1)] | None = None
    """0: all tokens."""
    # Accepted: they change nothing that comes back.
    metadata: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back."""
    service_tier: str | None = None
    """Accepted; changes nothing that comes back."""
