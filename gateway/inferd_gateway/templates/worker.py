"""The renderer process: frames of JSON on stdin and stdout, one answer per question.

A model's template is a program that a stranger wrote. It runs here, in Jinja's sandbox, under a memory limit, and the
gateway kills the process when it takes too long.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from typing import Any, BinaryIO

from jinja2 import Template

from inferd_gateway.templates.environment import RaisedByTemplate, TemplateTraits, analyse, make_environment
from inferd_gateway.templates.segments import Protector, split_segments

MEMORY_BYTES = 512 * 2**20
HEADER = struct.Struct("!I")


class OutputTooLarge(Exception):
    """The rendering passed its bound."""


class LoadedTemplate:
    """A compiled template, what it wants, and the control tokens it must be protected against."""

    def __init__(self, source: str, special: list[str], content_format: str) -> None:
        self.traits: TemplateTraits = analyse(source)
        self._template: Template = make_environment().from_string(source)
        self._format = self.traits.content_format if content_format == "auto" else content_format
        self._protector = Protector(special, self.traits.cuts, self.traits.pieces, strict=self.traits.strict)

    def render(self, job: dict[str, Any]) -> list[tuple[str, bool]]:
        """(text, trusted) runs. job: messages, variables, kwargs, tools, add_generation_prompt, continue_final_message,
        max_chars."""
        protect = self._protector.protect_all
        messages: Any = [
            {key: value if key == "role" else protect(value) for key, value in message.items()}
            for message in job["messages"]
        ]
        for message in messages:
            message["content"] = self._content(message["content"])
        variables = {
            **job["variables"],
            **{name: protect(value) for name, value in job["kwargs"].items()},
            "messages": messages,
            "tools": protect(job["tools"]),
            "documents": None,
            "add_generation_prompt": job["add_generation_prompt"],
        }
        text = self._generate(variables, job["max_chars"])
        if job["continue_final_message"]:
            text = cut_after(text, messages[-1]["content"])
        return split_segments(text)

    def _content(self, content: str | list[str]) -> Any:
        """`content` is one string or the texts of its parts."""
        if self._format == "string":
            return content if isinstance(content, str) else "\n".join(content)
        if isinstance(content, str):
            return [{"type": "text", "text": content}] if self.traits.wrap_strings else content
        return [{"type": "text", "text": part} for part in content]

    def _generate(self, variables: dict[str, Any], max_chars: int) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(variables):
            size += len(piece)
            if size > max_chars:
                raise OutputTooLarge(f"the rendered prompt is longer than {max_chars} characters")
            pieces.append(piece)
        return "".join(pieces)


def cut_after(text: str, content: Any) -> str:
    """The prompt up to the end of the last message, for the model to go on from."""
    last = content if isinstance(content, str) else content[-1]["text"]
    start = text.rfind(last.strip())
    if not last.strip() or start < 0:
        raise RaisedByTemplate("continue_final_message: the last message is not in the rendered prompt")
    kept = last.lstrip() if text.startswith(last.lstrip(), start) else last.strip()
    return text[: start + len(kept)]


def answer(job: dict[str, Any], loaded: dict[str, LoadedTemplate]) -> dict[str, Any]:
    try:
        if "source" in job:
            loaded[job["key"]] = LoadedTemplate(job["source"], job["special"], job["content_format"])
        return {"segments": loaded[job["key"]].render(job)} if "messages" in job else {}
    except RaisedByTemplate as error:
        return {"error": str(error)}
    except Exception as error:  # the top of this process: whatever a template does ends as its error
        return {"error": f"the chat template failed: {type(error).__name__}: {str(error)[:500]}"}


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
