"""The body of /v1/messages as a chat body: blocks become messages of the roles that templates know."""

from __future__ import annotations

from typing import Any

from inferd_gateway.convert import CHAT_FIELDS
from inferd_gateway.errors import ApiError, invalid
from inferd_gateway.schemas.chat import ChatRequest, ContentPart, FunctionCall, Message, ToolCall
from inferd_gateway.schemas.common import JsonSchemaFormat, ResponseFormat
from inferd_gateway.schemas.messages import (
    Block,
    CountTokensRequest,
    InputMessage,
    InputTool,
    InputToolChoice,
    MessagesRequest,
    OutputConfig,
)
from inferd_gateway.schemas.tools import Function, FunctionReference, NamedTool, Tool, ToolChoice
from inferd_gateway.tools import SCHEMA_FIELD

FIELDS = CHAT_FIELDS | {
    "stop": "stop_sequences",
    "stop.max_tokens": "max_tokens",
    "constraint": "output_config.format",
    SCHEMA_FIELD: "input_schema",
}
CHOICES: dict[str, ToolChoice] = {"auto": "auto", "any": "required", "none": "none"}


def chat_body(body: CountTokensRequest) -> ChatRequest:
    """Raises a 400 ApiError naming the field. Reasoning is off unless it is asked for, as in Anthropic's API."""
    thinks = body.thinking is not None and body.thinking.type != "disabled"
    messages = system_message(body)
    for index, message in enumerate(body.messages):
        messages += messages_of(message, f"messages[{index}]")
    prefilled = body.messages[-1].role == "assistant"
    choice, output = body.tool_choice, body.output_config
    # The body has been validated: what is made of it is not held to limits a second time.
    return ChatRequest.model_construct(
        model=body.model,
        messages=one_system_message_first(messages),
        tools=[tool_of(tool) for tool in body.tools or []] or None,
        tool_choice=choice_of(choice) if choice else None,
        parallel_tool_calls=False if choice and choice.disable_parallel_tool_use else None,
        continue_final_message=True if prefilled else None,
        chat_template_kwargs={"enable_thinking": thinks},
        include_reasoning=thinks,
        reasoning_effort=output.effort if output else None,
        **(generation_fields(body) if isinstance(body, MessagesRequest) else {}),
    )


def generation_fields(body: MessagesRequest) -> dict[str, Any]:
    fields = {
        "max_completion_tokens": body.max_tokens,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "response_format": format_of(body.output_config) if body.output_config else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def system_message(body: CountTokensRequest) -> list[Message]:
    if not body.system:
        return []
    if isinstance(body.system, str):
        return [Message(role="system", content=body.system)]
    parts = [text_part(block, f"system[{index}]") for index, block in enumerate(body.system)]
    return [Message(role="system", content=parts)]


def one_system_message_first(messages: list[Message]) -> list[Message]:
    """Most templates know one system message, at the start: all that stand there become one."""
    count = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    if count < 2:
        return messages
    parts = [part for message in messages[:count] for part in parts_of(message)]
    return [Message(role="system", content=parts), *messages[count:]]


def parts_of(message: Message) -> list[ContentPart]:
    content = message.content or []
    return [ContentPart(type="text", text=content)] if isinstance(content, str) else content


def messages_of(message: InputMessage, param: str) -> list[Message]:
    if isinstance(message.content, str):
        return [Message(role=message.role, content=message.content)]
    if message.role == "assistant":
        return [assistant_message(message.content, param)]
    found: list[Message] = []
    parts: list[ContentPart] = []
    for index, block in enumerate(message.content):
        place = f"{param}.content[{index}]"
        if block.type == "tool_result":
            found.append(tool_result(block, place))
        else:
            parts.append(text_part(block, place))
    return [*found, Message(role=message.role, content=parts)] if parts or not found else found


def assistant_message(blocks: list[Block], param: str) -> Message:
    texts, thoughts, calls = [], [], []
    for index, block in enumerate(blocks):
        place = f"{param}.content[{index}]"
        if block.type == "tool_use":
            name, call_id = needed(block.name, f"{place}.name"), needed(block.id, f"{place}.id")
            calls.append(ToolCall(id=call_id, function=FunctionCall(name=name, arguments=block.input or {})))
        elif block.type == "thinking":
            thoughts.append(block.thinking or "")
        elif block.type != "redacted_thinking":
            texts.append(text_part(block, place).text or "")
    return Message(
        role="assistant",
        content="".join(texts) if texts else None,
        reasoning="".join(thoughts) or None,
        tool_calls=calls or None,
    )


def tool_result(block: Block, param: str) -> Message:
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(text_part(part, f"{param}.content[{i}]").text or "" for i, part in enumerate(content))
    text = f"Error: {content}" if block.is_error else content
    return Message(role="tool", tool_call_id=needed(block.tool_use_id, f"{param}.tool_use_id"), content=text)


def text_part(block: Block, param: str) -> ContentPart:
    if block.type != "text":
        message = f"{param}.type: this model reads text only, got {block.type[:64]!r}."
        raise ApiError(400, message, param=f"{param}.type", code="unsupported_content")
    return ContentPart(type="text", text=needed(block.text, f"{param}.text"))


def needed(value: str | None, param: str) -> str:
    if value is None:
        raise invalid(param, f"{param} is required.")
    return value


def tool_of(tool: InputTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(type="function", function=function)


def format_of(config: OutputConfig) -> ResponseFormat | None:
    if config.format is None:
        return None
    schema = JsonSchemaFormat(schema=config.format.schema_, strict=True)
    return ResponseFormat(type="json_schema", json_schema=schema)


def choice_of(choice: InputToolChoice) -> ToolChoice:
    if choice.type == "tool":
        name = needed(choice.name, "tool_choice.name")
        return NamedTool(type="function", function=FunctionReference(name=name))
    return CHOICES[choice.type]
