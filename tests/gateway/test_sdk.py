"""The OpenAI SDK against the gateway."""

from __future__ import annotations

import threading

import openai
import pytest

MESSAGES = [{"role": "user", "content": "hi"}]


def test_chat(gateway, daemon):
    reply = gateway.sdk().chat.completions.create(model="toy", messages=MESSAGES, n=2)
    assert [choice.message.content for choice in reply.choices] == [daemon.reply] * 2
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply._request_id


def test_chat_stream(gateway, daemon):
    stream = gateway.sdk().chat.completions.create(
        model="toy", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == daemon.reply
    assert chunks[-1].usage.completion_tokens == len(daemon.reply.encode()) + 1


def test_chat_stream_helper(gateway, daemon):
    with gateway.sdk().chat.completions.stream(model="toy", messages=MESSAGES, logprobs=True) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == daemon.reply
    assert len(final.choices[0].logprobs.content) == len(daemon.reply.encode()) + 1


def test_completions(gateway, daemon):
    client = gateway.sdk()
    assert client.completions.create(model="toy", prompt="x", max_tokens=64).choices[0].text == daemon.reply
    chunks = client.completions.create(model="toy", prompt="x", max_tokens=64, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == daemon.reply


def test_raw_response_and_ignored_fields(gateway):
    raw = gateway.sdk().chat.completions.with_raw_response.create(
        model="toy", messages=MESSAGES, extra_body={"frobnicate": 1, "top_k": 3}
    )
    assert raw.headers["x-inferd-ignored-params"] == "frobnicate"


def test_models(gateway):
    client = gateway.sdk()
    assert [model.id for model in client.models.list()] == ["org/toy", "toy"]
    assert client.models.retrieve("org/toy").id == "org/toy"


def test_errors(gateway, daemon, make_status):
    client = gateway.sdk()
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="nope", messages=MESSAGES)
    assert (not_found.value.code, not_found.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="toy", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature"
    daemon.break_after = 2
    stream = client.chat.completions.create(model="toy", messages=MESSAGES, stream=True)
    with pytest.raises(openai.APIError):
        list(stream)


def test_bad_key(start_gateway):
    gateway = start_gateway(api_key=("good",))
    with pytest.raises(openai.AuthenticationError):
        gateway.sdk(api_key="bad").models.list()
    assert gateway.sdk(api_key="good").models.list().data


def test_the_sdk_retries_what_may_be_retried(gateway, daemon, make_status):
    overloaded = make_status("RESOURCE_EXHAUSTED", "full", "QUEUE_FULL", retry_s=0.01)
    daemon.failures = [overloaded]
    client = gateway.sdk(max_retries=1)
    assert client.chat.completions.create(model="toy", messages=MESSAGES).choices
    daemon.failures = [make_status("ALREADY_EXISTS", "twice", "DUPLICATE_REQUEST")]
    calls = len(daemon.requests)
    with pytest.raises(openai.ConflictError):
        client.chat.completions.create(model="toy", messages=MESSAGES)
    assert len(daemon.requests) == calls + 1


def test_closing_a_stream_stops_the_generation(gateway, daemon):
    daemon.gate = threading.Semaphore(2)
    stream = gateway.sdk().chat.completions.create(model="toy", messages=MESSAGES, stream=True)
    next(iter(stream))
    stream.close()
    assert daemon.ended.wait(5)
