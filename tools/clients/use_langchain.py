"""langchain-openai's ChatOpenAI."""

from __future__ import annotations

from typing import Any, Literal

import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

from tools.clients import probe


class City(BaseModel):
    """A city."""

    name: str = Field(min_length=1, max_length=16)
    continent: Literal["Europe", "Asia", "Africa", "America", "Oceania"]


def chat(**options: Any) -> ChatOpenAI:
    defaults: dict[str, Any] = {"model": probe.MODEL, "api_key": probe.KEY, "max_tokens": probe.MAX_TOKENS}
    return ChatOpenAI(base_url=probe.BASE_URL, temperature=0, max_retries=0, **defaults | options)


def whole() -> None:
    reply = chat().invoke(probe.QUESTION)
    assert probe.ANSWER in reply.content
    assert reply.usage_metadata["total_tokens"] > 0


def stream() -> None:
    parts = list(chat(stream_usage=True).stream(probe.QUESTION))
    assert len(parts) > 3
    assert "".join(str(part.content) for part in parts) == chat().invoke(probe.QUESTION).content


def abort() -> None:
    before = probe.aborted_choices()
    parts = chat(max_tokens=probe.LONG_TOKENS, extra_body={"ignore_eos": True}).stream(probe.QUESTION)
    for _ in range(3):
        next(parts)
    parts.close()
    probe.assert_aborted(before)


def bad_key() -> None:
    probe.assert_raises(openai.AuthenticationError, lambda: chat(api_key=probe.WRONG_KEY).invoke(probe.QUESTION))


def unknown_model() -> None:
    probe.assert_raises(openai.NotFoundError, lambda: chat(model=probe.WRONG_MODEL).invoke(probe.QUESTION))


def structured() -> None:
    for method in ("json_schema", "function_calling"):
        bound = chat(max_tokens=120).with_structured_output(City, method=method)
        assert isinstance(bound.invoke(probe.QUESTION), City), method


def tools() -> None:
    bound = chat(max_tokens=120).bind_tools([City], tool_choice="any", parallel_tool_calls=False)
    reply = bound.invoke(probe.QUESTION)
    (call,) = reply.tool_calls
    assert call["name"] == "City"
    assert probe.is_city(call["args"])
    streamed = None
    for part in bound.stream(probe.QUESTION):
        streamed = part if streamed is None else streamed + part
    assert streamed is not None
    assert streamed.tool_calls[0]["args"] == call["args"]
    turn = [HumanMessage(probe.QUESTION), reply, ToolMessage("2 million people", tool_call_id=call["id"])]
    assert chat().invoke(turn).content


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
