"""The body of /v1/responses as a chat body: items become messages, calls join the assistant's turn."""

from __future__ import annotations

from typing import Any

from inferd_gateway.convert import CHAT_FIELDS
from inferd_gateway.errors import ApiError, invalid
from inferd_gateway.schemas.chat import ChatRequest, ContentPart, FunctionCall, Message, ToolCall
from inferd_gateway.schemas.common import JsonSchemaFormat, ResponseFormat
from inferd_gateway.schemas.responses import (
    AllowedFunctions,
    FunctionTool,
    InputItem,
    NamedFunction,
    Part,
    ResponsesRequest,
    TextFormat,
)
from inferd_gateway.schemas.tools import (
    AllowedList,
    AllowedTools,
    Function,
    FunctionReference,
    NamedTool,
    Tool,
    ToolChoice,
)
from inferd_gateway.tools import SCHEMA_FIELD

FIELDS = CHAT_FIELDS | {
    "stop.max_tokens": "max_output_tokens",
    "prompt": "input",
    "inputs": "input",
    SCHEMA_FIELD: "parameters",
    "constraint": "text",
}
SAME_NAMES = (
    *("model", "temperature", "top_p", "stream", "parallel_tool_calls", "top_k", "min_p", "seed", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "stop", "ignore_eos", "min_tokens", "priority", "cache_salt"),
    "chat_template_kwargs",
)
TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


def chat_body(body: ResponsesRequest) -> ChatRequest:
    """Raises a 400 ApiError naming the field."""
    values: dict[str, Any] = {name: value for name in SAME_NAMES if (value := getattr(body, name)) is not None}
    # The body has been validated: what is made of it is not held to limits a second time.
    return ChatRequest.model_construct(
        messages=messages_of(body),
        max_completion_tokens=body.max_output_tokens,
        reasoning_effort=body.reasoning.effort if body.reasoning else None,
        response_format=format_of(body.text.format) if body.text and body.text.format else None,
        tools=[tool_of(tool) for tool in body.tools] if body.tools else None,
        tool_choice=choice_of(body.tool_choice),
        truncate_prompt_tokens=-1 if body.truncation == "auto" else None,
        **values,
    )


def messages_of(body: ResponsesRequest) -> list[Message]:
    messages = [Message(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*messages, Message(role="user", content=body.input)]
    for index, item in enumerate(body.input):
        add_item(messages, item, f"input[{index}]")
    return messages


def add_item(messages: list[Message], item: InputItem, param: str) -> None:
    match item.type:
        case "message":
            if item.role is None:
                raise invalid(f"{param}.role", f"{param}.role is required.")
            said = Message(role=item.role, content=parts_of(item.content, f"{param}.content"))
            add_to_turn(messages, said) if item.role == "assistant" else messages.append(said)
        case "reasoning":
            text = joined(item.content or item.summary, f"{param}.content")
            if text:
                add_to_turn(messages, Message(role="assistant", reasoning=text))
        case "function_call":
            call = ToolCall(
                id=needed(item.call_id, f"{param}.call_id"),
                function=FunctionCall(name=needed(item.name, f"{param}.name"), arguments=item.arguments or "{}"),
            )
            add_to_turn(messages, Message(role="assistant", tool_calls=[call]))
        case "function_call_output":
            call_id = needed(item.call_id, f"{param}.call_id")
            if item.output is None:
                raise invalid(f"{param}.output", f"{param}.output is required.")
            content = parts_of(item.output, f"{param}.output")
            messages.append(Message(role="tool", tool_call_id=call_id, content=content))
        case _:
            message = f"{param}.type: items of type {item.type[:64]!r} are not supported."
            raise ApiError(400, message, param=f"{param}.type", code="unsupported_content")


def add_to_turn(messages: list[Message], new: Message) -> None:
    """The items of one turn are one message: templates would open and close a turn for each message."""
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        messages.append(new)
        return
    messages[-1] = Message(
        role="assistant",
        content=[*as_parts(last.content), *as_parts(new.content)]
        if last.content and new.content
        else last.content or new.content,
        reasoning="\n".join(text for text in (last.reasoning, new.reasoning) if text) or None,
        tool_calls=[*(last.tool_calls or []), *(new.tool_calls or [])] or None,
    )


def as_parts(content: str | list[ContentPart] | None) -> list[ContentPart]:
    return [ContentPart(type="text", text=content)] if isinstance(content, str) else content or []


def parts_of(content: str | list[Part] | None, param: str) -> str | list[ContentPart]:
    if content is None or isinstance(content, str):
        return content or ""
    parts = [ContentPart(type="text", text=part_text(part, f"{param}[{i}]")) for i, part in enumerate(content)]
    return parts or ""


def joined(content: str | list[Part] | None, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part_text(part, f"{param}[{index}]") for index, part in enumerate(content))


def part_text(part: Part, param: str) -> str:
    if part.type not in TEXT_PARTS:
        message = f"{param}.type: this model reads text only, got {part.type[:64]!r}."
        raise ApiError(400, message, param=f"{param}.type", code="unsupported_content")
    text = part.refusal if part.type == "refusal" else part.text
    return needed(text, f"{param}.text")


def needed(value: str | None, param: str) -> str:
    if value is None:
        raise invalid(param, f"{param} is required.")
    return value


def format_of(wanted: TextFormat) -> ResponseFormat:
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    if wanted.schema_ is None:
        raise invalid("text.format.schema", "text.format.schema is required.")
    return ResponseFormat(
        type="json_schema",
        json_schema=JsonSchemaFormat(name=wanted.name, schema=wanted.schema_, strict=wanted.strict),
    )


def tool_of(tool: FunctionTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict)
    return Tool(type="function", function=function)


def choice_of(choice: str | NamedFunction | AllowedFunctions | None) -> ToolChoice | None:
    if isinstance(choice, NamedFunction):
        return named(choice.name)
    if isinstance(choice, AllowedFunctions):
        tools = [named(tool.name) for tool in choice.tools]
        return AllowedTools(type="allowed_tools", allowed_tools=AllowedList(mode=choice.mode, tools=tools))
    return choice  # type: ignore[return-value]  # one of the three words


def named(name: str) -> NamedTool:
    return NamedTool(type="function", function=FunctionReference(name=name))
