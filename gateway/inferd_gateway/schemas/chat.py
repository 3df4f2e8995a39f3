"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import MAX_MESSAGES, Body, GenerationBody, Integer, UInt32
from inferd_gateway.schemas.tools import Tool, ToolChoice


class ContentPart(Body):
    """A typed part. Only text can be read; any other type is refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Body):
    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(Body):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] = "function"
    index: Integer | None = None


class Message(Body):
    """One turn. `reasoning` and `reasoning_content` are what the model thought in an earlier turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    """Text, or parts of type text."""
    name: str | None = None
    """For templates that show it."""
    tool_calls: list[ToolCall] | None = None
    """Of the assistant."""
    tool_call_id: str | None = None
    """Of a tool's result: the call that it answers."""
    refusal: str | None = None
    """Accepted; not shown to the model."""
    reasoning: str | None = None
    """What the assistant thought; given to the template."""
    reasoning_content: str | None = None
    """Another name of reasoning."""


class ChatFields(Body):
    """What shapes the prompt; /tokenize takes it too."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    """The conversation, oldest first."""
    tools: list[Tool] | None = None
    """At most 128, each name once."""
    reasoning_effort: str | None = None
    """Given to the template; `none` also sets enable_thinking to false."""
    add_generation_prompt: bool | None = None
    """End the prompt with the assistant's header. true."""
    continue_final_message: bool | None = None
    """The last message is continued instead of answered; excludes add_generation_prompt."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template."""


class ChatRequest(ChatFields, GenerationBody):
    max_completion_tokens: UInt32 | None = None
    """Wins over max_tokens."""
    logprobs: bool | None = None
    """Log probabilities of the generated tokens."""
    top_logprobs: UInt32 | None = None
    """The most probable tokens per position. Only with logprobs true."""
    tool_choice: ToolChoice | None = None
    """auto where there are tools. required and a named function constrain the output."""
    parallel_tool_calls: bool | None = None
    """false: at most one call, where calls are forced. true."""
    include_reasoning: bool | None = None
    """false leaves the reasoning out of the reply. true."""
    # Accepted: they change nothing that comes back.
    prediction: dict[str, Any] | None = None
    """Accepted; changes nothing that comes back."""
    verbosity: str | None = None
    """Accepted; changes nothing that comes back."""
