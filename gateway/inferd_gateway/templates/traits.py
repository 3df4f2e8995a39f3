"""What a template takes of a conversation, found out by rendering some."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

Message = dict[str, Any]
Render = Callable[[list[Message], list[dict[str, Any]] | None], str | None]  # None: the template fails

ROLES = ("system", "user", "assistant", "tool")
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
THINKING_PART = "a part of type thinking"

TEXT, ARGUMENT, REASONING = "inferd probe text", "inferd probe argument", "inferd probe reasoning"
CALL_ID = "inferdcal"  # nine letters and digits, as Mistral's templates demand
TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
    },
}
ASKED: Message = {"role": "user", "content": "question"}
ANSWERED: Message = {"role": "assistant", "content": "answer"}


@dataclass(frozen=True)
class TemplateTraits:
    """text, parts: the roles whose content may be a string, and a list of parts. reasoning: the field that holds what
    the assistant thought, or THINKING_PART. arguments: of calls, as an object or as its JSON. null_content: a message
    that has only calls has no content, rather than an empty one. one_of_both: with calls, a message may have content or
    reasoning, not both."""

    text: frozenset[str] = frozenset(ROLES)
    parts: frozenset[str] = frozenset()
    reasoning: str = REASONING_FIELDS[0]
    arguments: Literal["object", "string"] = "object"
    null_content: bool = False
    one_of_both: bool = False

    def shaped(self, message: Message) -> Message:
        """`message` (role, content as one text or the texts of its parts, reasoning_content, further keys) as the
        template wants it."""
        role, calls = message["role"], message.get("tool_calls")
        reasoning = message.get("reasoning_content")
        if reasoning is not None and self.one_of_both and calls and "".join(message["content"]).strip():
            reasoning = None
        shaped = {key: value for key, value in message.items() if key != "reasoning_content"}
        shaped["content"] = self.content(role, message["content"])
        if calls:
            shaped["tool_calls"] = [self._call(call) for call in calls]
            if self.null_content and not shaped["content"]:
                shaped["content"] = None
        if reasoning is not None and self.reasoning != THINKING_PART:
            shaped[self.reasoning] = reasoning
        elif reasoning:
            texts = parts_of(message["content"]) if message["content"] else []
            shaped["content"] = [{"type": "thinking", "thinking": reasoning}, *texts]
        return shaped

    def content(self, role: str, content: str | list[str]) -> Any:
        takes_text, takes_parts = role in self.text or role not in ROLES, role in self.parts
        if isinstance(content, list):
            return parts_of(content) if takes_parts else "\n".join(content)
        return parts_of(content) if takes_parts and not takes_text else content

    def _call(self, call: dict[str, Any]) -> dict[str, Any]:
        arguments = call["function"]["arguments"]
        if self.arguments == "string" and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}


def parts_of(content: str | list[str]) -> list[dict[str, str]]:
    texts = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": text} for text in texts]


def found_traits(source: str, render: Render) -> TemplateTraits:
    """`render` renders messages and tools as they are."""
    traits = TemplateTraits()
    forms = {role: content_forms(role, render) for role in ROLES}
    text = frozenset(role for role, (as_text, as_parts) in forms.items() if as_text or not as_parts)
    traits = replace(traits, text=text, parts=frozenset(role for role, (_, as_parts) in forms.items() if as_parts))
    traits = with_calls(traits, render)
    return with_reasoning(traits, source, render)


def content_forms(role: str, render: Render) -> tuple[bool, bool]:
    """(whether the role's content may be a string, whether it may be parts)."""
    as_text = next((prompt for prompt in prompts(role, TEXT, False, render) if TEXT in prompt), None)
    parts = parts_of(TEXT)
    for others_too in (False, True):
        for prompt in prompts(role, parts, others_too, render):
            # A template that merely prints what it is given shows the type too.
            if TEXT in prompt and (prompt == as_text or (as_text is None and not shows(prompt, "type", "text"))):
                return as_text is not None, True
    return as_text is not None, False


def prompts(role: str, content: Any, others_too: bool, render: Render) -> Iterator[str]:
    """Renderings of conversations in which a message of the role has that content."""
    probe: Message = {"role": role, "content": content}
    asked, answered = (
        {**message, "content": parts_of(message["content"]) if others_too else message["content"]}
        for message in (ASKED, ANSWERED)
    )
    called = {**ANSWERED, "content": "", "tool_calls": [call_with({"place": "x"})]}
    given = {"tool_call_id": CALL_ID, "name": "probe"}
    conversations: dict[str, tuple[list[Message], ...]] = {
        "system": ([probe, asked], [probe, asked, answered, asked]),
        "user": ([probe], [asked, answered, probe]),
        "assistant": ([asked, probe, asked], [asked, probe]),
        "tool": ([asked, called, probe | given], [asked, called, probe | given, answered, asked]),
    }
    for messages in conversations[role]:
        prompt = render(messages, [TOOL] if role == "tool" else None)
        if prompt is not None:
            yield prompt


def with_calls(traits: TemplateTraits, render: Render) -> TemplateTraits:
    """The first form of calls of which the template shows the arguments, as they are."""
    forms: Iterable[tuple[Literal["object", "string"], bool]] = product(("object", "string"), (False, True))
    for arguments, null_content in forms:
        tried = replace(traits, arguments=arguments, null_content=null_content)
        for prompt in call_prompts(tried, render, content=""):
            # Neither as Python writes an object, nor as JSON within JSON.
            if ARGUMENT in prompt and f"'place': '{ARGUMENT}'" not in prompt and '\\"place\\"' not in prompt:
                return tried
    return traits


def shows(prompt: str, key: str, value: str) -> bool:
    """Whether the prompt shows an object with this entry as Python or JSON writes it."""
    return f"'{key}': '{value}'" in prompt or f'"{key}": "{value}"' in prompt


def with_reasoning(traits: TemplateTraits, source: str, render: Render) -> TemplateTraits:
    """The field of which the template shows the reasoning; where it shows none, the one that it names."""
    named = [field for field in REASONING_FIELDS if re.search(rf"\b{field}\b", source)] or [REASONING_FIELDS[0]]
    traits = replace(traits, reasoning=named[0])
    for form in (*named, THINKING_PART):
        tried = replace(traits, reasoning=form)
        prompts_with = reasoning_prompts(tried, render)
        if any(REASONING in prompt and not shows(prompt, "type", "thinking") for prompt in prompts_with):
            both = [*call_prompts(tried, render, content="text", reasoning_content=REASONING)]
            content_alone = [*call_prompts(tried, render, content="text")]
            return replace(tried, one_of_both=not both and bool(content_alone))
    return traits


def reasoning_prompts(traits: TemplateTraits, render: Render) -> Iterator[str]:
    answered = traits.shaped({**ANSWERED, "reasoning_content": REASONING})
    prompt = render([traits.shaped(ASKED), answered], None)
    if prompt is not None:
        yield prompt
    yield from call_prompts(traits, render, content="", reasoning_content=REASONING)


def call_prompts(traits: TemplateTraits, render: Render, **fields: Any) -> Iterator[str]:
    """Renderings of conversations with a call."""
    called = {"role": "assistant", "tool_calls": [call_with({"place": ARGUMENT})], **fields}
    result = {"role": "tool", "content": "result", "tool_call_id": CALL_ID, "name": "probe"}
    for messages in ([ASKED, called, result], [ASKED, called, result, ANSWERED, ASKED], [ASKED, called]):
        prompt = render([traits.shaped(message) for message in messages], [TOOL])
        if prompt is not None:
            yield prompt


def call_with(arguments: dict[str, str]) -> dict[str, Any]:
    return {"type": "function", "id": CALL_ID, "function": {"name": "probe", "arguments": arguments}}
