"""/v1/messages: the Anthropic SDK, the sequence of events, blocks in and out, errors in its own shape."""

from __future__ import annotations

import json

import anthropic
import pytest

TOOL = {
    "name": "weather",
    "description": "of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}[{{ message.reasoning_content }}]{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls %}({{ call.function.name }}){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
CALL = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def tool_gateway(start_gateway, daemon):
    daemon.template, daemon.reply = TEMPLATE, CALL
    return start_gateway(tool_call_parser="hermes", reasoning_parser="qwen3")


@pytest.fixture
def sdk():
    """Makes clients, and closes them."""
    clients: list[anthropic.Anthropic] = []

    def make(gateway, **options) -> anthropic.Anthropic:
        settings = {"api_key": "none", "max_retries": 0, "timeout": 30, **options}
        clients.append(anthropic.Anthropic(base_url=gateway.url, **settings))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def prompt_of(daemon) -> str:
    return "".join(segment.text for segment in daemon.requests[-1].prompt.segments.segments)


def test_text_in_text_out(sdk, gateway, daemon):
    message = sdk(gateway).messages.create(
        model="toy",
        max_tokens=64,
        messages=ASK,
        system="be brief",
        stop_sequences=["done"],
        extra_body={"top_k": 5},
    )
    assert [block.text for block in message.content] == ["Hello, wörld! 日本 🙂 "]
    assert (message.stop_reason, message.stop_sequence, message.role) == ("stop_sequence", "done", "assistant")
    request = daemon.requests[-1]
    assert (request.stop.max_tokens, list(request.stop.stop_strings), request.sampling.top_k) == (64, ["done"], 5)
    assert prompt_of(daemon).startswith("<|im_start|>system\nbe brief<|im_end|>\n")
    assert message.usage.cache_read_input_tokens == 3
    assert message.usage.output_tokens > 0
    assert message._request_id


def test_the_sequence_of_events(sdk, gateway, daemon):
    events = list(sdk(gateway).messages.create(model="toy", max_tokens=64, messages=ASK, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert events[0].message.usage.input_tokens > 0
    assert "".join(event.delta.text for event in events if event.type == "content_block_delta") == daemon.reply
    assert (events[-2].delta.stop_reason, events[-2].usage.output_tokens) == (
        "end_turn",
        len(daemon.reply.encode()) + 1,
    )


def test_tools_whole_and_streamed(sdk, tool_gateway, daemon):
    client = sdk(tool_gateway)
    whole = client.messages.create(model="toy", max_tokens=200, messages=ASK, tools=[TOOL])
    assert [block.type for block in whole.content] == ["text", "tool_use"]
    assert (whole.content[1].name, whole.content[1].input) == ("weather", {"city": "Köln"})
    assert whole.stop_reason == "tool_use"
    assert '"name": "weather"' in prompt_of(daemon)
    with client.messages.stream(model="toy", max_tokens=200, messages=ASK, tools=[TOOL]) as stream:
        final = stream.get_final_message()
    assert final.content[1].input == {"city": "Köln"}
    history = [
        *ASK,
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in whole.content]},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": whole.content[1].id,
                    "content": [{"type": "text", "text": "rain"}],
                },
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    client.messages.create(model="toy", max_tokens=200, messages=history, tools=[TOOL])
    assert "I look.(weather)<|im_end|>\n<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nso?" in prompt_of(daemon)


def test_a_tool_can_be_forced(sdk, tool_gateway, daemon):
    sdk(tool_gateway).messages.create(
        model="toy", max_tokens=200, messages=ASK, tools=[TOOL], tool_choice={"type": "tool", "name": "weather"}
    )
    assert "weather" in daemon.requests[-1].constraint.structural_tag
    assert daemon.requests[-1].constraint.starts_after == ""


def test_thinking_only_when_asked_for(sdk, tool_gateway, daemon):
    daemon.reply = "<think>\nHm.\n</think>\n\nYes."
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = sdk(tool_gateway).messages.create(model="toy", max_tokens=2048, messages=ASK, thinking=thinking)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == ("Hm.", "Yes.")
    with sdk(tool_gateway).messages.stream(model="toy", max_tokens=2048, messages=ASK, thinking=thinking) as stream:
        assert stream.get_final_message().content[0].thinking == "Hm."
    daemon.reply = "Yes."
    message = sdk(tool_gateway).messages.create(model="toy", max_tokens=64, messages=ASK)
    assert [block.type for block in message.content] == ["text"]
    assert prompt_of(daemon).endswith("</think>\n\n")


def test_a_last_assistant_message_is_continued(sdk, gateway, daemon):
    sdk(gateway).messages.create(
        model="toy", max_tokens=9, messages=[*ASK, {"role": "assistant", "content": "The answer"}]
    )
    assert prompt_of(daemon).endswith("assistant\nThe answer")


def test_count_tokens_is_what_a_message_costs(sdk, gateway):
    client = sdk(gateway)
    counted = client.messages.count_tokens(model="toy", messages=ASK, system="be brief").input_tokens
    usage = client.messages.create(model="toy", max_tokens=9, messages=ASK, system="be brief").usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_have_anthropics_shape(sdk, gateway, daemon, start_gateway, make_status):
    client = sdk(gateway)
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="nope", max_tokens=9, messages=ASK)
    assert missing.value.body["error"]["type"] == "not_found_error"
    assert missing.value.body["type"] == "error"
    with pytest.raises(anthropic.BadRequestError) as bad:
        client.messages.create(model="toy", max_tokens=0, messages=ASK)
    assert "max_tokens" in bad.value.body["error"]["message"]
    image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/"}}]}]
    with pytest.raises(anthropic.BadRequestError):
        client.messages.create(model="toy", max_tokens=9, messages=image)
    daemon.failures = [make_status("RESOURCE_EXHAUSTED", "full", "QUEUE_FULL", retry_s=1)]
    with pytest.raises(anthropic.RateLimitError) as full:
        client.messages.create(model="toy", max_tokens=9, messages=ASK)
    assert full.value.response.headers["retry-after"] == "1"
    assert full.value.body["request_id"] == full.value.response.headers["request-id"]
    daemon.break_after = 2
    with pytest.raises(anthropic.APIStatusError):
        list(client.messages.create(model="toy", max_tokens=64, messages=ASK, stream=True))


def test_the_key_of_anthropics_header(sdk, start_gateway):
    gateway = start_gateway(api_key=("good",))
    with pytest.raises(anthropic.AuthenticationError) as refused:
        sdk(gateway, api_key="bad").messages.create(model="toy", max_tokens=9, messages=ASK)
    assert refused.value.body["error"]["type"] == "authentication_error"
    assert sdk(gateway, api_key="good").messages.create(model="toy", max_tokens=9, messages=ASK).content
    assert gateway.post("/v1/messages/nope", {}).json()["type"] == "error"


def test_ready_and_load(gateway, daemon, start_gateway):
    assert gateway.get("/ready").status_code == 200
    assert gateway.get("/load").json() == {"server_load": 0}
    daemon.serving = False
    assert gateway.get("/ready").status_code == 503


def test_system_messages_among_the_messages(gateway, daemon):
    messages = [
        {"role": "system", "content": "first"},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": [{"type": "text", "text": "later"}]},
        {"role": "user", "content": "go on"},
    ]
    body = {"model": "toy", "max_tokens": 5, "system": "zeroth", "messages": messages}
    assert gateway.post("/v1/messages", body).status_code == 200
    assert prompt_of(daemon).startswith(
        "<|im_start|>system\nzeroth\nfirst<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>system\nlater<|im_end|>\n<|im_start|>user\ngo on<|im_end|>\n"
    )


def test_the_form_of_the_output(gateway, daemon):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"format": {"type": "json_schema", "schema": schema}, "effort": "low"}
    body = {"model": "toy", "max_tokens": 5, "messages": ASK, "output_config": wanted}
    response = gateway.post("/v1/messages", body)
    assert response.status_code == 200
    assert "x-inferd-ignored-params" not in response.headers
    constraint = daemon.requests[-1].constraint
    assert json.loads(constraint.json_schema) == schema
    assert not constraint.lenient


@pytest.mark.parametrize(
    ("tool", "words"),
    [
        ({"type": "web_search_20250305", "name": "web_search", "max_uses": 5}, "'web_search_20250305'"),
        ({"type": "bash_20250124", "name": "bash"}, "'bash_20250124'"),
        ({"name": "f"}, "tools[0].input_schema"),
    ],
)
def test_tools_that_the_server_would_have_to_run_are_refused_by_name(gateway, tool, words):
    body = {"model": "toy", "max_tokens": 5, "messages": ASK, "tools": [tool]}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        response = gateway.post(path, body)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]


def test_names_of_tools_have_up_to_128_characters(tool_gateway, daemon):
    body = {"model": "toy", "max_tokens": 5, "messages": ASK, "tools": [TOOL | {"name": "n" * 128}]}
    assert tool_gateway.post("/v1/messages", body).status_code == 200
    assert "n" * 128 in prompt_of(daemon)
    body["tools"][0]["name"] += "n"
    assert tool_gateway.post("/v1/messages", body).status_code == 400


@pytest.mark.parametrize("content", ["", "  \n", [], [{"type": "text", "text": ""}]])
def test_an_empty_last_message_is_no_prefill(gateway, daemon, content):
    messages = [*ASK, {"role": "assistant", "content": content}]
    response = gateway.post("/v1/messages", {"model": "toy", "max_tokens": 5, "messages": messages})
    assert response.status_code == 200, response.text
    assert prompt_of(daemon) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_more_stop_sequences_than_openai_takes(gateway, daemon):
    stops = [f"stop {index}" for index in range(20)]
    body = {"model": "toy", "max_tokens": 5, "messages": ASK, "stop_sequences": stops}
    assert gateway.post("/v1/messages", body).status_code == 200
    assert list(daemon.requests[-1].stop.stop_strings) == stops


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_is_cut_to_what_fits_and_too_long_a_prompt_told_in_its_words(gateway, daemon, stream):
    body = {"model": "toy", "max_tokens": 32_000, "messages": ASK, "stream": stream}
    assert gateway.post("/v1/messages", body).status_code == 200
    stop = daemon.requests[-1].stop
    assert (stop.max_tokens, stop.clamp) == (32_000, True)
    body["messages"] = [{"role": "user", "content": "x" * 5000}]
    response = gateway.post("/v1/messages", body)
    error = response.json()["error"]
    tokens = 5000 + len("1user\n1\n1assistant\n")  # a byte a token, and one for each control token
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["message"] == f"prompt is too long: {tokens} tokens > 4095 maximum"


@pytest.mark.parametrize("arguments", ['{"x": 1e999}', '{"x": NaN}', '{"x": "\\ud800"}'])
def test_arguments_that_are_no_json_to_others_do_not_break_the_answer(tool_gateway, daemon, arguments):
    daemon.reply = f'<tool_call>\n{{"name": "weather", "arguments": {arguments}}}\n</tool_call>'
    body = {"model": "toy", "max_tokens": 500, "messages": ASK, "tools": [TOOL]}
    response = tool_gateway.post("/v1/messages", body)
    assert response.status_code == 200, response.text
    assert all(block.get("input", {}) == {} for block in response.json()["content"])


def test_a_stream_begins_with_no_output_counted(gateway):
    body = {"model": "toy", "max_tokens": 1, "messages": ASK, "stream": True}
    first = next(line for line in gateway.post("/v1/messages", body).text.splitlines() if line.startswith("data:"))
    assert json.loads(first[5:])["message"]["usage"]["output_tokens"] == 0
