"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.common import Body, GenerationBody, UInt32
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
    index: int | None = None


class Message(Body):
    """One turn. `reasoning` and `reasoning_content` are what the model thought in an earlier turn."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class ChatFields(Body):
    """What shapes the prompt; /tokenize takes it too."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)]
    tools: list[Tool] | None = None
    reasoning_effort: str | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class ChatRequest(ChatFields, GenerationBody):
    max_completion_tokens: UInt32 | None = None
    logprobs: bool | None = None
    top_logprobs: UInt32 | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool | None = None
    # Accepted: they change nothing that comes back.
    prediction: dict[str, Any] | None = None
    verbosity: str | None = None
