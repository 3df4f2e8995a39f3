"""instructor: typed answers by tool calls, JSON schema, and JSON; whole and partial."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
from pydantic import BaseModel, Field

from tools.clients import probe

TALK: Any = [{"role": "user", "content": probe.QUESTION}]


class City(BaseModel):
    """A city."""

    name: str = Field(min_length=1, max_length=16)
    continent: Literal["Europe", "Asia", "Africa", "America", "Oceania"]


def patched(mode: instructor.Mode, key: str = probe.KEY) -> Any:
    sdk = openai.OpenAI(base_url=probe.BASE_URL, api_key=key, max_retries=0)
    return instructor.from_openai(sdk, mode=mode)


def ask(mode: instructor.Mode = instructor.Mode.TOOLS, key: str = probe.KEY, **options: Any) -> Any:
    asked: dict[str, Any] = {"model": probe.MODEL, "max_tokens": 120, "response_model": City} | options
    return patched(mode, key).chat.completions.create(messages=TALK, temperature=0, max_retries=0, **asked)


def cause(error: BaseException) -> BaseException:
    """instructor wraps the SDK's errors in its own."""
    return error if isinstance(error, openai.APIError) or error.__cause__ is None else cause(error.__cause__)


def whole() -> None:
    reply = ask(response_model=None, max_tokens=probe.MAX_TOKENS)
    assert probe.ANSWER in reply.choices[0].message.content


def stream() -> None:
    asked: dict[str, Any] = {"model": probe.MODEL, "max_tokens": 120, "temperature": 0}
    client = patched(instructor.Mode.TOOLS)
    parts = list(client.chat.completions.create_partial(response_model=City, messages=TALK, **asked))
    assert len(parts) > 1
    last = parts[-1]
    # A partial model asks with a schema of its own, so the city may be another one than without streaming.
    assert City.model_validate(last.model_dump())


def abort() -> None:
    before = probe.aborted_choices()
    asked: dict[str, Any] = {"response_model": None, "max_tokens": probe.LONG_TOKENS, "stream": True}
    parts = ask(extra_body={"ignore_eos": True}, **asked)
    for _ in range(3):
        next(parts)
    parts.close()
    probe.assert_aborted(before)


def bad_key() -> None:
    error = probe.assert_raises(Exception, lambda: ask(key=probe.WRONG_KEY))
    assert isinstance(cause(error), openai.AuthenticationError), repr(error)


def unknown_model() -> None:
    error = probe.assert_raises(Exception, lambda: ask(model=probe.WRONG_MODEL))
    assert isinstance(cause(error), openai.NotFoundError), repr(error)


def structured() -> None:
    assert isinstance(ask(instructor.Mode.JSON_SCHEMA), City)


def tools() -> None:
    assert isinstance(ask(instructor.Mode.TOOLS), City)
    assert isinstance(ask(instructor.Mode.TOOLS_STRICT), City)


probe.report(
    {
        "whole": whole,
        "stream": stream,
        "abort": abort,
        "bad key": bad_key,
        "unknown model": unknown_model,
        "structured": structured,
        "tools": tools,
    }
)
