"""What /v1/messages answers; see schemas/replies.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from inferd_gateway.schemas.replies import Count, Reply


class TextBlock(Reply):
    type: Literal["text"]
    text: str


class ThinkingBlock(Reply):
    type: Literal["thinking"]
    thinking: str
    signature: str


class ToolUseBlock(Reply):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class MessageUsage(Reply):
    """input_tokens are those that were not found in the cache."""

    input_tokens: Count
    cache_creation_input_tokens: Count
    cache_read_input_tokens: Count
    output_tokens: Count


class MessageObject(Reply):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[Annotated[TextBlock | ThinkingBlock | ToolUseBlock, Field(discriminator="type")]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"] | None
    stop_sequence: str | None
    usage: MessageUsage


class TokenCount(Reply):
    input_tokens: Count


class MessageError(Reply):
    type: str
    message: str


class MessageErrorReply(Reply):
    """Every answer under /v1/messages that is not 2xx."""

    type: Literal["error"]
    error: MessageError
    request_id: str
