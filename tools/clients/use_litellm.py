"""litellm, with the `hosted_vllm/` provider that it has for servers of this API, and with `openai/`."""

from __future__ import annotations

import json
from typing import Any

import litellm

from tools.clients import probe

litellm.telemetry = False
PROVIDERS = ("openai", "hosted_vllm")
TALK = [{"role": "user", "content": probe.QUESTION}]


def ask(provider: str = "openai", **options: Any) -> Any:
    asked: dict[str, Any] = {"model": probe.MODEL, "api_key": probe.KEY, "max_tokens": probe.MAX_TOKENS} | options
    asked["model"] = f"{provider}/{asked['model']}"
    return litellm.completion(messages=TALK, api_base=probe.BASE_URL, temperature=0, num_retries=0, **asked)


def whole() -> None:
    for provider in PROVIDERS:
        reply = ask(provider)
        assert probe.ANSWER in reply.choices[0].message.content
        assert reply.usage.total_tokens > 0


def stream() -> None:
    for provider in PROVIDERS:
        parts = list(ask(provider, stream=True))
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        assert text == ask(provider).choices[0].message.content


def abort() -> None:
    before = probe.aborted_choices()
    parts = ask(stream=True, max_tokens=probe.LONG_TOKENS, extra_body={"ignore_eos": True})
    for _ in range(3):
        next(parts)
    parts.completion_stream.close()
    probe.assert_aborted(before)


def bad_key() -> None:
    probe.assert_raises(litellm.AuthenticationError, lambda: ask(api_key=probe.WRONG_KEY))


def unknown_model() -> None:
    probe.assert_raises(litellm.NotFoundError, lambda: ask(model=probe.WRONG_MODEL))


def structured() -> None:
    named = {"name": "city", "schema": probe.CITY, "strict": True}
    for provider in PROVIDERS:
        reply = ask(provider, max_tokens=80, response_format={"type": "json_schema", "json_schema": named})
        assert probe.is_city(json.loads(reply.choices[0].message.content))


def tools() -> None:
    for provider in PROVIDERS:
        reply = ask(provider, max_tokens=120, tools=[probe.TOOL], tool_choice="required", parallel_tool_calls=False)
        (call,) = reply.choices[0].message.tool_calls
        assert call.function.name == "look_up_city"
        assert probe.is_city(json.loads(call.function.arguments))


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
