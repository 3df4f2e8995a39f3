"""Chat messages as a template wants them."""

from __future__ import annotations

from typing import Any

from inferd_gateway import strict_json
from inferd_gateway.errors import ApiError, invalid
from inferd_gateway.schemas.chat import ChatFields, ContentPart, Message, ToolCall
from inferd_gateway.schemas.common import MAX_MESSAGES
from inferd_gateway.templates.renderer import Conversation

# These are the gateway's own to set, or would reach into the template's machinery.
RESERVED_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "messages",
        "raise_exception",
        "return_tensors",
        "self",
        "strftime_now",
        "template",
        "tokenize",
        "tools",
    }
)
MAX_KWARGS = 32
TOOL_ROLES = ("tool", "function")


def conversation(
    body: ChatFields, kwargs: dict[str, Any] | None = None, tools: list[dict[str, Any]] | None = None
) -> Conversation:
    """`kwargs`: further template variables that other fields of the body set. Raises a 400 ApiError."""
    continued = bool(body.continue_final_message)
    wanted = body.add_generation_prompt
    if continued and wanted:
        raise invalid("continue_final_message", "continue_final_message and add_generation_prompt exclude each other.")
    if len(body.messages) > MAX_MESSAGES:
        raise invalid("messages", f"messages must be at most {MAX_MESSAGES}, got {len(body.messages)}.")
    messages = [template_message(message, f"messages[{index}]") for index, message in enumerate(body.messages)]
    if continued and says_nothing(messages[-1]):
        # There is nothing to go on from: the answer begins as any other does.
        continued, wanted = False, True
        messages = without_empty_end(messages)
    return Conversation(
        messages=named_results(messages),
        kwargs={**(kwargs or {}), **checked_kwargs(body.chat_template_kwargs or {})},
        tools=tools,
        add_generation_prompt=not continued if wanted is None else wanted,
        continue_final_message=continued,
    )


def says_nothing(message: dict[str, Any]) -> bool:
    """Whether it is an assistant's message without text."""
    return message["role"] == "assistant" and not "".join(message["content"]).strip()


def without_empty_end(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without a last one that has neither text, reasoning nor calls, unless there is no other."""
    empty = not (messages[-1].keys() & {"reasoning_content", "tool_calls"})
    return messages[:-1] if empty and len(messages) > 1 else messages


def named_results(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the name of its tool in each result that names only its call; templates show it."""
    names: dict[str, str] = {}
    named = []
    for message in messages:
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ()) if "id" in call}
        name = names.get(message.get("tool_call_id", ""))
        found = name is not None and message["role"] == "tool" and "name" not in message
        named.append({**message, "name": name} if found else message)
    return named


def checked_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    if len(kwargs) > MAX_KWARGS:
        raise invalid("chat_template_kwargs", f"chat_template_kwargs: at most {MAX_KWARGS} keys, got {len(kwargs)}.")
    for name, value in kwargs.items():
        param = f"chat_template_kwargs.{name[:64]}"
        if name in RESERVED_KWARGS or name.startswith("_") or not (name.isidentifier() and len(name) <= 64):
            raise invalid(param, f"{param} cannot be set by a request.")
        if not (value is None or isinstance(value, str | int | float | bool)):
            raise invalid(param, f"{param} must be a string, a number, true, false or null.")
    return kwargs


def template_message(message: Message, param: str) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": text_content(message, f"{param}.content"),
    }
    for name in ("name", "tool_call_id"):
        if getattr(message, name) is not None:
            fields[name] = getattr(message, name)
    reasoning = message.reasoning if message.reasoning is not None else message.reasoning_content
    if reasoning is not None:
        fields["reasoning_content"] = reasoning
    if message.tool_calls:
        fields["tool_calls"] = [template_tool_call(call) for call in message.tool_calls]
    elif message.content is None and message.role != "assistant":
        raise invalid(f"{param}.content", f"{param}.content is required for the role {message.role}.")
    return fields


def text_content(message: Message, param: str) -> str | list[str]:
    """One text, or the texts of the parts. What a tool gave is one text: templates expect no parts there."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    if not content and message.role not in ("assistant", *TOOL_ROLES):
        raise invalid(param, f"{param} must have at least one part, got none.")
    texts = [part_text(part, f"{param}[{index}]") for index, part in enumerate(content)]
    return "\n".join(texts) if message.role in TOOL_ROLES else texts or ""


def part_text(part: ContentPart, param: str) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None and part.type in ("text", "refusal"):
        raise invalid(f"{param}.{part.type}", f"{param}.{part.type} is required.")
    if text is None:
        message = f"{param}.type: this model reads text only, got {part.type[:64]!r}."
        raise ApiError(400, message, param=f"{param}.type", code="unsupported_content")
    return text


def template_tool_call(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object: none at all are an empty one, text that is no object stays text. Templates that want
    text are given text."""
    arguments = call.function.arguments
    if isinstance(arguments, str):
        try:
            parsed = strict_json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    fields = {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
    return fields | ({"id": call.id} if call.id is not None else {})
