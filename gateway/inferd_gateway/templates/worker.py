"""The renderer process: frames of JSON on stdin and stdout, one answer per question.

A model's template is a program that a stranger wrote. It runs here, in Jinja's sandbox, under a memory limit, and the
gateway kills the process when it takes too long.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar

from jinja2 import Template

from inferd_gateway.templates.environment import RaisedByTemplate, TextEnvironment
from inferd_gateway.templates.segments import ControlTokens
from inferd_gateway.templates.text import CALLER, LAST_MESSAGE, concat, own, spans_of
from inferd_gateway.templates.traits import ROLES, TemplateTraits, found_traits

MEMORY_BYTES = 512 * 2**20
HEADER = struct.Struct("!I")
T = TypeVar("T")


class OutputTooLarge(Exception):
    """The rendering passed its bound."""


class LoadedTemplate:
    """A compiled template, what it wants, and the control tokens that no caller may write."""

    def __init__(
        self, source: str, special: list[str], content_format: str, variables: dict[str, str], max_chars: int
    ) -> None:
        self._template: Template = TextEnvironment().from_string(source)
        self._control = ControlTokens(special)
        self._variables = variables
        self._max_chars = max_chars
        self.traits = in_format(found_traits(source, self._probe), content_format)

    def render(self, job: dict[str, Any]) -> list[tuple[str, bool]]:
        """(text, trusted) runs. job: messages, kwargs, tools, add_generation_prompt, continue_final_message."""
        messages = [owned_message(self.traits.shaped(message)) for message in job["messages"]]
        if job["continue_final_message"]:
            shaped = self.traits.shaped(job["messages"][-1])
            messages[-1] = owned_message(shaped) | {"content": own(shaped["content"], LAST_MESSAGE)}
        text = self._generate(
            {
                **self._variables,
                **own(job["kwargs"]),
                "messages": messages,
                "tools": own(job["tools"]),
                "documents": None,
                "add_generation_prompt": job["add_generation_prompt"],
            }
        )
        return self._control.runs(up_to_last_message(text) if job["continue_final_message"] else text)

    def _probe(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str | None:
        """The rendering at a fixed time; None when the template refuses or fails."""
        variables = {**self._variables, "strftime_now": str, "documents": None, "add_generation_prompt": False}
        return attempted(lambda: self._generate({**variables, "messages": messages, "tools": tools}))[0]

    def _generate(self, variables: dict[str, Any]) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(variables):
            size += len(piece)
            if size > self._max_chars:
                raise OutputTooLarge(f"the rendered prompt is longer than {self._max_chars} characters")
            pieces.append(piece)
        return concat(pieces)


def in_format(traits: TemplateTraits, content_format: str) -> TemplateTraits:
    """The traits with the form of contents that the operator wants; "auto": the template's own."""
    parts = {"string": frozenset[str](), "openai": frozenset(ROLES)}.get(content_format, traits.parts)
    text = frozenset(ROLES) if content_format == "string" else traits.text
    return replace(traits, parts=parts, text=text)


def owned_message(message: dict[str, Any]) -> dict[str, Any]:
    """The role is one of a few words; everything else is the caller's."""
    return {key: value if key == "role" else own(value, CALLER) for key, value in message.items()}


def up_to_last_message(text: str) -> str:
    """The prompt up to the end of the last message, for the model to go on from."""
    ends = [span.end for span in spans_of(text) if span.origin == LAST_MESSAGE]
    if not ends:
        raise RaisedByTemplate("continue_final_message: the last message is not in the rendered prompt")
    return text[: ends[-1]]


def answer(job: dict[str, Any], loaded: dict[str, LoadedTemplate]) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        if "template" in job:
            loaded[job["key"]] = LoadedTemplate(**job["template"])
        return {"segments": loaded[job["key"]].render(job)} if "messages" in job else {}

    reply, problem = attempted(work)
    return {"error": problem} if reply is None else reply


def attempted(work: Callable[[], T]) -> tuple[T | None, str]:
    """What `work` gives; None, and why, where the template refuses or fails."""
    try:
        return work(), ""
    except RaisedByTemplate as error:
        return None, str(error)
    except Exception as error:  # the top of this process: whatever a template does ends as its error
        return None, f"the chat template failed: {type(error).__name__}: {str(error)[:500]}"


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    frame: dict[str, Any] = json.loads(stream.read(HEADER.unpack(header)[0]))
    return frame


def write_frame(stream: BinaryIO, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    loaded: dict[str, LoadedTemplate] = {}
    write_frame(sys.stdout.buffer, {})
    while (job := read_frame(sys.stdin.buffer)) is not None:
        write_frame(sys.stdout.buffer, answer(job, loaded))


if __name__ == "__main__":
    main()
