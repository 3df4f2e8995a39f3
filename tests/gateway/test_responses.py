"""/v1/responses: the OpenAI SDK, the sequence of events, items in and out."""

from __future__ import annotations

import json

import openai
import pytest

FUNCTION = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls %}({{ call.function.name }}){% endfor %}<|im_end|>\n"
    "{% endfor %}<|im_start|>assistant\n"
)
REPLY = (
    '<think>\nHm.\n</think>\n\nI look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
)


@pytest.fixture
def tool_gateway(start_gateway, daemon):
    daemon.template, daemon.reply = TEMPLATE, REPLY
    return start_gateway(tool_call_parser="hermes", reasoning_parser="qwen3")


def prompt_of(daemon) -> str:
    return "".join(segment.text for segment in daemon.requests[-1].prompt.segments.segments)


def test_text_in_text_out(gateway, daemon):
    reply = gateway.sdk().responses.create(
        model="toy", input="hi", instructions="be brief", max_output_tokens=64, temperature=0.5
    )
    assert reply.output_text == daemon.reply
    assert (reply.status, reply.object, reply.model, reply.error) == ("completed", "response", "toy", None)
    assert (reply.store, reply.temperature, reply.max_output_tokens) == (False, 0.5, 64)
    assert reply.usage.output_tokens == len(daemon.reply.encode()) + 1
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    assert reply.usage.input_tokens_details.cached_tokens == 3
    assert prompt_of(daemon).startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi")
    assert daemon.requests[-1].stop.max_tokens == 64


def test_the_sequence_of_events(gateway, daemon):
    events = list(gateway.sdk().responses.create(model="toy", input="hi", stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == daemon.reply
    assert events[0].response.status == "in_progress"
    assert events[-1].response.output_text == daemon.reply
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1


def test_reasoning_text_and_call_are_items_whole_and_streamed(tool_gateway):
    client = tool_gateway.sdk()
    whole = client.responses.create(model="toy", input="x", tools=[FUNCTION])
    assert [item.type for item in whole.output] == ["reasoning", "message", "function_call"]
    reasoning, message, call = whole.output
    assert (reasoning.content[0].text, message.content[0].text) == ("Hm.", "I look.")
    assert (call.name, json.loads(call.arguments), call.status) == ("weather", {"city": "Köln"}, "completed")
    with client.responses.stream(model="toy", input="x", tools=[FUNCTION]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.reasoning_text.delta" in kinds
    assert "response.function_call_arguments.done" in kinds
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert final.output[2].arguments == call.arguments


def test_a_conversation_is_carried_in_the_input(tool_gateway, daemon):
    first = tool_gateway.sdk().responses.create(model="toy", input="x", tools=[FUNCTION])
    history = [{"role": "user", "content": "x"}, *[item.model_dump(exclude_none=True) for item in first.output]]
    output = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "rain"}
    raw = tool_gateway.sdk().responses.with_raw_response.create(model="toy", input=[*history, output])
    assert "x-inferd-ignored-params" not in raw.headers
    assert "<|im_start|>assistant\n[Hm.]I look.(weather)<|im_end|>\n<|im_start|>tool\nrain<|im_end|>" in prompt_of(
        daemon
    )


def test_length_is_incomplete(gateway):
    reply = gateway.sdk().responses.create(model="toy", input="hi", max_output_tokens=3)
    assert (reply.status, reply.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert reply.output_text == "Hel"


def test_fields_reach_the_daemon_and_the_template(tool_gateway, daemon):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    body = {
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "one"}]}, {"role": "user", "content": "x"}
        ],
        "text": {"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}},
        "top_p": 0.5, "truncation": "auto", "store": True, "metadata": {"a": "b"}, "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"],
    }  # fmt: skip
    response = tool_gateway.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    request = daemon.requests[-1]
    assert json.loads(request.constraint.json_schema) == schema
    assert request.sampling.top_p == 0.5
    assert prompt_of(daemon).startswith("<|im_start|>system\none<|im_end|>")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"tools": [{"type": "web_search", "name": "x"}]}, "tools[0].type"),
        ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "nope"}}, "tool_choice"),
        ({"include": ["file_search_call.results"]}, "include[0]"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id"),
        ({"temperature": 3}, "temperature"),
        ({"input": "x" * 5000}, "input"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema"),
    ],
)
def test_what_cannot_be_is_named(gateway, fields, param):
    response = gateway.post("/v1/responses", {"model": "toy", "input": "hi", **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_a_stream_that_breaks_ends_as_failed(gateway, daemon):
    daemon.break_after = 2
    events = list(gateway.sdk().responses.create(model="toy", input="hi", stream=True))
    assert [event.type for event in events][-2:] == ["error", "response.failed"]
    assert events[-1].response.error.code == "server_error"
    daemon.break_after = 0
    with pytest.raises(openai.InternalServerError):
        gateway.sdk().responses.create(model="toy", input="hi")


def test_the_items_of_a_turn_are_one_message(tool_gateway, daemon):
    items = [
        {"role": "user", "content": "hi"},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": ""},
        {"type": "reasoning", "summary": [], "encrypted_content": "x"},
        {"type": "message", "role": "assistant", "content": "And again."},
        {"type": "function_call", "call_id": "2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "So."}]},
        {"type": "function_call", "call_id": "3", "name": "weather", "arguments": "{}"},
    ]
    response = tool_gateway.post("/v1/responses", {"input": items, "tools": [FUNCTION]})
    assert response.status_code == 200, response.text
    assert prompt_of(daemon).partition("]<")[2] == (
        "|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n[Hm.]I look.\nAnd again.(weather)(weather)<|im_end|>\n"
        "<|im_start|>tool\nrain<|im_end|>\n"
        "<|im_start|>assistant\n[So.](weather)<|im_end|>\n"
        "<|im_start|>assistant"
    )


def test_what_the_schema_takes_is_taken(gateway, daemon):
    """As many items as the schema allows, and instructions, which become one message more."""
    items = [{"role": "user" if index % 2 else "assistant", "content": "a"} for index in range(1500)]
    for body in (
        {"instructions": "i", "input": items[:1024]},
        {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}] * 300}]},
        {"input": items, "truncation": "auto"},
    ):
        response = gateway.post("/v1/responses", body)
        error = response.json()["error"]
        # The toy's context is small: too much for it is the only fault.
        assert response.status_code == 200 or error["code"] == "context_length_exceeded", response.text
