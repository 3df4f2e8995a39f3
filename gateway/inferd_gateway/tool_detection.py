"""Finds out how a model writes tool calls: its template writes some, and the parser that reads them back is the one.

A template shows the model its own calls of earlier turns, so it writes them as the model was taught to. A parser counts
only when it reads back exactly what was written; where none does, the form is unknown, which callers can be told.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from inferd_gateway.errors import ApiError
from inferd_gateway.parsers.pieces import Arguments, CallStart, Content, Parser
from inferd_gateway.parsers.reasoning import REASONING_FORMATS
from inferd_gateway.parsers.registry import FORMATS
from inferd_gateway.templates.renderer import ChatTemplate, Conversation, Renderer

CANDIDATES = ("hermes", "qwen3_xml", "llama3_json", "mistral", "deepseek_v3", "pythonic")
Calls = Sequence[tuple[str, Mapping[str, Any]]]
ONE: Calls = (("look_up", {"city": "Köln 1", "days": 3, "tags": ["a", "b"], "exact": True}),)
TWO: Calls = (*ONE, ("note_down", {"text": "so {be} it"}))
PARAMETERS: dict[str, dict[str, Any]] = {
    "look_up": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "exact": {"type": "boolean"},
        },
    },
    "note_down": {"type": "object", "properties": {"text": {"type": "string"}}},
}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"To {name}.", "parameters": schema}}
    for name, schema in PARAMETERS.items()
]
QUESTION = {"role": "user", "content": "Look it up."}
ANSWER = "It is so and so."
NO_MARK = " \t\r\n>]"  # what may stand before a mark; a mark itself holds none of them but at its end
RENDER_S = 30.0  # the pool may have to start a process first


class NotWritten(Exception):
    """The template refuses such calls, or leaves them out."""


async def detect_tool_format(renderer: Renderer, template: ChatTemplate) -> str:
    """The name of the format (parsers.registry); '' when none is certain."""
    try:
        written = await write_calls(renderer, template, ONE)
    except NotWritten:
        return ""
    names = [name for name in CANDIDATES if reads(name, written, ONE, template.special_tokens)]
    if not names:
        return ""
    try:
        written = await write_calls(renderer, template, TWO)
    except NotWritten:  # a template may take one call in a turn only
        return names[0]
    return next((name for name in names if reads(name, written, TWO, template.special_tokens)), "")


async def write_calls(renderer: Renderer, template: ChatTemplate, calls: Calls) -> str:
    """The assistant's turn with these calls, in the template's own words. Raises NotWritten."""
    turn = {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "type": "function",
                "id": f"call{index:05d}",  # nine letters and digits, as Mistral's templates demand
                "function": {"name": name, "arguments": dict(arguments)},
            }
            for index, (name, arguments) in enumerate(calls)
        ],
    }
    with_calls = await render(renderer, template, [QUESTION, turn])
    with_text = await render(renderer, template, [QUESTION, {"role": "assistant", "content": ANSWER}])
    if ANSWER not in with_text:
        raise NotWritten
    # The two turns begin alike. A mark that begins like something in the other turn is not torn apart.
    pairs = enumerate(zip(with_calls, with_text, strict=False))
    start = next((place for place, (first, second) in pairs if first != second), len(with_calls))
    while start and with_calls[start - 1] not in NO_MARK:
        start -= 1
    # What follows the turn's own text is the end of every turn.
    end = with_text.rpartition(ANSWER)[2]
    return with_calls[start:].removesuffix(end)


async def render(renderer: Renderer, template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    conversation = Conversation(
        messages=messages, kwargs={}, tools=TOOLS, add_generation_prompt=False, continue_final_message=False
    )
    try:
        return "".join(text for text, _ in await renderer.render(template, conversation, RENDER_S))
    except (ApiError, TimeoutError) as error:
        raise NotWritten from error


def reads(name: str, written: str, calls: Calls, special_tokens: Sequence[str]) -> bool:
    """Whether the parser finds these calls and, beside control tokens and marks of
    reasoning, nothing else. Bare JSON is only Llama's form with
    Llama's word in it: other templates write the calls of earlier turns as JSON and ask for something else."""
    if name == "llama3_json" and '"parameters"' not in written:
        return False
    content, found = read(FORMATS[name].make(PARAMETERS), written)
    no_reasoning = [mark for form in REASONING_FORMATS.values() for mark in (form.open, form.close)]
    for token in sorted([*special_tokens, *no_reasoning], key=len, reverse=True):
        content = content.replace(token, "")
    return not content.strip() and found == list(calls)


def read(parser: Parser, text: str) -> tuple[str, list[tuple[str, Any]]]:
    """(content, calls); arguments that are no JSON are None."""
    content: list[str] = []
    calls: list[tuple[str, list[str]]] = []
    for piece in [*parser.push(text), *parser.finish()]:
        if isinstance(piece, CallStart):
            calls.append((piece.name, []))
        elif isinstance(piece, Arguments):
            calls[-1][1].append(piece.text)
        elif isinstance(piece, Content):
            content.append(piece.text)
    return "".join(content), [(name, arguments_of("".join(parts))) for name, parts in calls]


def arguments_of(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
