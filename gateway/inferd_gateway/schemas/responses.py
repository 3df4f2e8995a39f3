"""POST /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import (
    MAX_MESSAGES,
    Body,
    FunctionName,
    Int64,
    Integer,
    OrMinusOne,
    Positive,
    Priority,
    UInt32,
)
from inferd_gateway.schemas.tools import ToolBody


class Part(Body):
    """A typed part of an item. Only text can be read; any other type is refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputItem(Body):
    """One item of the input, of any type; which fields it needs depends on the type."""

    type: str = "message"
    """message, reasoning, function_call or function_call_output; any other is refused."""
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    """Of a call and of its output."""
    name: str | None = None
    arguments: str | None = None
    """Of a call: JSON as text."""
    output: str | list[Part] | None = None
    """Of a call's output."""
    summary: list[Part] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    encrypted_content: str | None = None


class TextFormat(Body):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    """JSON Schema; with type json_schema."""
    strict: bool | None = None
    """Refuse a schema that cannot be enforced in full."""


class TextConfig(Body):
    format: TextFormat | None = None
    """What the output must be."""
    verbosity: str | None = None
    """Accepted; changes nothing that comes back."""


class ReasoningConfig(Body):
    effort: str | None = None
    """As reasoning_effort of chat completions."""
    summary: str | None = None
    """Accepted; changes nothing that comes back."""
    generate_summary: str | None = None
    """Accepted; changes nothing that comes back."""


class FunctionTool(ToolBody):
    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    """Shown to the model."""
    parameters: dict[str, Any] | None = None
    """JSON Schema of the arguments."""
    strict: bool | None = None
    """Accepted; changes nothing that comes back. Forced calls always match the schema."""


class NamedFunction(Body):
    type: Literal["function"]
    name: str


class AllowedFunctions(Body):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    """required forces one of them."""
    tools: Annotated[list[NamedFunction], Field(min_length=1)]
    """Which of the tools may be called."""


class ResponsesRequest(Body):
    """OpenAI's fields, and the sampling fields that chat completions take beyond them."""

    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    """Text, or the items of a conversation, oldest first."""
    model: str | None = None
    """A served name or alias."""
    instructions: str | None = None
    """The system message."""
    max_output_tokens: Positive | None = None
    """Most tokens to generate. Unset: to the end of the context."""
    temperature: float | None = None
    """As for chat completions."""
    top_p: float | None = None
    """As for chat completions."""
    stream: bool | None = None
    """Server-sent events, from response.created to response.completed."""
    text: TextConfig | None = None
    """The form of the output."""
    reasoning: ReasoningConfig | None = None
    """How much to think."""
    tools: list[FunctionTool] | None = None
    """Functions; at most 128."""
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | AllowedFunctions | None = None
    """As for chat completions."""
    parallel_tool_calls: bool | None = None
    """As for chat completions."""
    truncation: Literal["auto", "disabled"] | None = None
    """auto drops tokens at the start of too long a prompt. disabled."""
    include: list[Literal["reasoning.encrypted_content"]] | None = None
    """Accepted; changes nothing that comes back."""
    metadata: dict[str, Any] | None = None
    """Comes back in the response."""
    # vLLM's.
    top_k: OrMinusOne | None = None
    """As for chat completions."""
    min_p: float | None = None
    """As for chat completions."""
    seed: Int64 | None = None
    """As for chat completions."""
    repetition_penalty: float | None = None
    """As for chat completions."""
    presence_penalty: float | None = None
    """As for chat completions."""
    frequency_penalty: float | None = None
    """As for chat completions."""
    stop: str | list[str] | None = None
    """As for chat completions."""
    ignore_eos: bool | None = None
    """As for chat completions."""
    min_tokens: UInt32 | None = None
    """As for chat completions."""
    priority: Priority | None = None
    """As for chat completions."""
    cache_salt: str | None = None
    """As for chat completions."""
    chat_template_kwargs: dict[str, Any] | None = None
    """As for chat completions."""
    # Accepted: they change nothing that comes back. Nothing is stored, whatever `store` says.
    store: bool | None = None
    """Accepted; changes nothing that comes back."""
    user: str | None = None
    """Accepted; changes nothing that comes back."""
    service_tier: str | None = None
    """Accepted; changes nothing that comes back."""
    safety_identifier: str | None = None
    """Accepted; changes nothing that comes back."""
    prompt_cache_key: str | None = None
    """Requests with one key go to the same daemon, where one of several can be chosen."""
    prompt_cache_retention: str | None = None
    """Accepted; changes nothing that comes back."""
    max_tool_calls: Integer | None = None
    """Accepted; changes nothing that comes back."""
    stream_options: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back."""
    # Known, but only these values can be served: nothing is kept between calls.
    previous_response_id: None = None
    """Refused: nothing is kept between calls."""
    conversation: None = None
    """Refused: nothing is kept between calls."""
    prompt: None = None
    """Refused: nothing is kept between calls."""
    background: Literal[False] | None = None
    """Refused: nothing is kept between calls."""
    top_logprobs: Literal[0] | None = None
    """0 alone: not supported."""
