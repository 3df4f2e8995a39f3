"""What an operation answers, for its description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from inferd_gateway.schemas.replies import ErrorReply

Answers = dict[int | str, dict[str, Any]]


def answers(reply: type[BaseModel], event: type[BaseModel] | None = None) -> Answers:
    """`reply`, or with `stream` server-sent events, each (or its data, where it has no name) an `event`."""
    found: dict[str, Any] = {"model": reply, "description": "Done."}
    if event is not None:
        found["content"] = {"text/event-stream": {"schema": {"$ref": f"#/components/schemas/{event.__name__}"}}}
    return {200: found}


def errors(reply: type[BaseModel] = ErrorReply) -> Answers:
    """Any other status."""
    return {
        "4XX": {"model": reply, "description": "The request is at fault; `error` says why."},
        "5XX": {"model": reply, "description": "The server is at fault, or cannot serve now."},
    }


def unready(reply: type[BaseModel]) -> Answers:
    """What a probe is told while there is nothing to serve."""
    return {503: {"model": reply, "description": "Nothing can be served now."}}
