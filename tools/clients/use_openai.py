"""openai-python, every major version alike."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
from pydantic import BaseModel, Field

from tools.clients.probe import (
    ANSWER,
    BASE_URL,
    KEY,
    LONG_TOKENS,
    MAX_TOKENS,
    MODEL,
    QUESTION,
    TOOL,
    WRONG_KEY,
    WRONG_MODEL,
    aborted_choices,
    assert_aborted,
    assert_raises,
    is_city,
    report,
)

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
MESSAGES: Any = [{"role": "user", "content": QUESTION}]
ASK: dict[str, Any] = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": MAX_TOKENS}


class City(BaseModel):
    name: str = Field(min_length=1, max_length=16)
    continent: Literal["Europe", "Asia", "Africa", "America", "Oceania"]


def whole() -> None:
    reply = client.chat.completions.create(**ASK)
    assert ANSWER in reply.choices[0].message.content
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    text = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=8, temperature=0)
    assert ANSWER in text.choices[0].text
    assert MODEL in [model.id for model in client.models.list()]
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=MAX_TOKENS)
    assert ANSWER in answer.output_text


def stream() -> None:
    chunks = list(client.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == client.chat.completions.create(**ASK).choices[0].message.content
    assert chunks[-1].usage.completion_tokens > 0
    asked: Any = {"model": MODEL, "input": QUESTION, "temperature": 0, "max_output_tokens": MAX_TOKENS}
    with client.responses.stream(**asked) as events:
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert "".join(deltas) == events.get_final_response().output_text


def abort() -> None:
    before = aborted_choices()
    asked = ASK | {"max_tokens": LONG_TOKENS, "extra_body": {"ignore_eos": True}}
    chunks = client.chat.completions.create(**asked, stream=True)
    for _ in range(3):
        next(chunks)
    chunks.close()
    assert_aborted(before)


def bad_key() -> None:
    stranger = openai.OpenAI(base_url=BASE_URL, api_key=WRONG_KEY, max_retries=0)
    error = assert_raises(openai.AuthenticationError, lambda: stranger.chat.completions.create(**ASK))
    assert error.status_code == 401
    assert error.code == "invalid_api_key"


def unknown_model() -> None:
    asked = ASK | {"model": WRONG_MODEL}
    error = assert_raises(openai.NotFoundError, lambda: client.chat.completions.create(**asked))
    assert (error.code, error.param) == ("model_not_found", "model")


def structured() -> None:
    asked = ASK | {"max_tokens": 80}
    parsed = client.beta.chat.completions.parse(**asked, response_format=City)
    assert isinstance(parsed.choices[0].message.parsed, City)
    schema = {"name": "city", "schema": TOOL["function"]["parameters"], "strict": True}
    whole = client.chat.completions.create(**asked, response_format={"type": "json_schema", "json_schema": schema})
    assert is_city(json.loads(whole.choices[0].message.content))


def tools() -> None:
    named: Any = {"type": "function", "function": {"name": "look_up_city"}}
    for choice in ("required", named):
        asked = ASK | {"max_tokens": 120, "tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
        reply = client.chat.completions.create(**asked).choices[0]
        (call,) = reply.message.tool_calls
        assert (reply.finish_reason, call.function.name) == ("tool_calls", "look_up_city")
        assert is_city(json.loads(call.function.arguments))
        with client.beta.chat.completions.stream(**asked) as events:
            for _ in events:
                pass
            streamed = events.get_final_completion().choices[0].message.tool_calls[0]
        assert streamed.function.arguments == call.function.arguments
        turn = [
            *MESSAGES,
            {"role": "assistant", "tool_calls": [call.model_dump()]},
            {"role": "tool", "tool_call_id": call.id, "content": "Population 2 million."},
        ]
        assert client.chat.completions.create(**ASK | {"messages": turn}).choices[0].message.content


report(
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
