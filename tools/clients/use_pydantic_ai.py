"""pydantic-ai: an agent over OpenAIChatModel."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from tools.clients import probe


class City(BaseModel):
    """A city."""

    name: str = Field(min_length=1, max_length=16)
    continent: Literal["Europe", "Asia", "Africa", "America", "Oceania"]


def agent(
    output_type: Any = str, *, name: str = probe.MODEL, key: str = probe.KEY, **settings: Any
) -> Agent[None, Any]:
    model = OpenAIChatModel(name, provider=OpenAIProvider(base_url=probe.BASE_URL, api_key=key))
    wanted: dict[str, Any] = {"temperature": 0, "max_tokens": probe.MAX_TOKENS} | settings
    return Agent(model, output_type=output_type, model_settings=wanted, retries=0)


def whole() -> None:
    result = agent().run_sync(probe.QUESTION)
    assert probe.ANSWER in result.output


async def streamed() -> str:
    async with agent().run_stream(probe.QUESTION) as result:
        parts = [part async for part in result.stream_text(delta=True, debounce_by=None)]
    assert len(parts) > 3
    return "".join(parts)


def stream() -> None:
    assert asyncio.run(streamed()) == agent().run_sync(probe.QUESTION).output


async def leave_early() -> None:
    asked: dict[str, Any] = {"max_tokens": probe.LONG_TOKENS, "extra_body": {"ignore_eos": True}}
    async with agent(**asked).run_stream(probe.QUESTION) as result:
        count = 0
        async for _ in result.stream_text(delta=True, debounce_by=None):
            count += 1
            if count == 3:
                await result.cancel()
                break


def abort() -> None:
    before = probe.aborted_choices()
    asyncio.run(leave_early())
    probe.assert_aborted(before)


def bad_key() -> None:
    error = probe.assert_raises(ModelHTTPError, lambda: agent(key=probe.WRONG_KEY).run_sync(probe.QUESTION))
    assert isinstance(error, ModelHTTPError)
    assert error.status_code == 401


def unknown_model() -> None:
    error = probe.assert_raises(ModelHTTPError, lambda: agent(name=probe.WRONG_MODEL).run_sync(probe.QUESTION))
    assert isinstance(error, ModelHTTPError)
    assert error.status_code == 404


def structured() -> None:
    result = agent(NativeOutput(City), max_tokens=80).run_sync(probe.QUESTION)
    assert isinstance(result.output, City)


def tools() -> None:
    """The answer itself is a forced tool call; and a tool of the agent's, which the model may call."""
    result = agent(ToolOutput(City), max_tokens=120).run_sync(probe.QUESTION)
    assert isinstance(result.output, City)
    helped = agent()

    @helped.tool_plain
    def population(name: str) -> int:
        """How many live in a city."""
        return 2_000_000

    assert helped.run_sync(probe.QUESTION).output


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
