"""Tools and reasoning through the gateway: what reaches the template and the daemon, and what comes back."""

from __future__ import annotations

import asyncio
import json

import grpc
import pytest
from inferd_gateway.templates.renderer import ChatTemplate, Renderer
from inferd_gateway.tool_detection import detect_tool_format

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{{ message.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
CALLS = (
    'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


@pytest.fixture
def tool_gateway(start_gateway, daemon):
    daemon.template = TEMPLATE
    daemon.reply = CALLS
    return start_gateway(tool_call_parser="hermes", reasoning_parser="qwen3")


def prompt_of(daemon) -> str:
    return "".join(segment.text for segment in daemon.requests[-1].prompt.segments.segments)


def events(response) -> list[dict]:
    assert response.status_code == 200, response.text
    return [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]


def test_calls_of_a_whole_reply(tool_gateway, daemon):
    choice = tool_gateway.chat(tools=TOOLS).json()["choices"][0]
    message = choice["message"]
    assert message["content"] == "I look."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Köln"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert all(call["type"] == "function" and call["id"] for call in message["tool_calls"])
    assert choice["finish_reason"] == "tool_calls"
    assert '"name": "weather"' in prompt_of(daemon)
    assert not daemon.requests[-1].HasField("constraint")


def test_a_stream_is_as_openai_cuts_it(tool_gateway):
    chunks = events(tool_gateway.chat(tools=TOOLS, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    starts = [call for call in calls if "id" in call]
    assert [call["index"] for call in starts] == [0, 1]
    assert all(call["type"] == "function" and call["function"]["arguments"] == "" for call in starts)
    assert all(set(call) == {"index", "function"} for call in calls if "id" not in call)
    assert json.loads("".join(c["function"]["arguments"] for c in calls if c["index"] == 0)) == {"city": "Köln"}
    assert "".join(delta.get("content") or "" for delta in deltas) == "I look."
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "tool_calls"


def test_the_sdk_reads_streamed_calls(tool_gateway):
    messages = [{"role": "user", "content": "x"}]
    with tool_gateway.sdk().chat.completions.stream(model="toy", messages=messages, tools=TOOLS) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["weather", "clock"]


def test_one_call_when_parallel_calls_are_off(tool_gateway):
    message = tool_gateway.chat(tools=TOOLS, parallel_tool_calls=False).json()["choices"][0]["message"]
    assert len(message["tool_calls"]) == 1


def test_none_leaves_the_tools_out(tool_gateway, daemon):
    choice = tool_gateway.chat(tools=TOOLS, tool_choice="none").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (CALLS, "stop")
    assert "weather" not in prompt_of(daemon)
    assert tool_gateway.chat(tools=[], tool_choice="auto").json()["choices"][0]["finish_reason"] == "stop"


def test_required_and_named_calls_are_constrained(tool_gateway, daemon):
    choice = tool_gateway.chat(tools=TOOLS, tool_choice="required", reasoning_effort="none").json()["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    tag = json.loads(daemon.requests[-1].constraint.structural_tag)["format"]["elements"][0]
    assert (tag["type"], tag["at_least_one"], tag["stop_after_first"]) == ("tags_with_separator", True, False)
    first = tag["tags"][0]
    assert first["begin"] == '<tool_call>\n{"name": "weather", "arguments": '
    assert first["content"]["json_schema"] == WEATHER["function"]["parameters"]
    assert (first["content"]["lenient"], tag["at_most"]) == (True, 32)
    assert first["end"] == "}\n</tool_call>"
    named = {"type": "function", "function": {"name": "clock"}}
    tool_gateway.chat(tools=TOOLS, tool_choice=named)
    tag = json.loads(daemon.requests[-1].constraint.structural_tag)["format"]["elements"][0]
    assert ([each["begin"] for each in tag["tags"]], tag["stop_after_first"]) == (
        ['<tool_call>\n{"name": "clock", "arguments": '],
        True,
    )


@pytest.mark.parametrize("name", ["GET_NAME", "NAME", "NAMES_NAME"])
def test_a_forced_call_has_the_name_of_its_tool_whatever_it_is(start_gateway, daemon, name):
    for parser, begin in (("hermes", '<tool_call>\n{"name": "%s", "arguments": '), ("deepseek_v3", "%s\n```json\n")):
        gateway = start_gateway(tool_call_parser=parser)
        gateway.chat(tools=[{"type": "function", "function": {"name": name}}], tool_choice="required")
        tag = json.loads(daemon.requests[-1].constraint.structural_tag)["format"]["elements"]
        (call,) = next(element for element in tag if "tags" in element)["tags"]
        assert call["begin"].endswith(begin % name)


def test_a_model_without_a_parser_can_be_forced(gateway, daemon):
    daemon.reply = '[{"name": "weather", "parameters": {"city": "Rome"}}]'
    message = gateway.chat(tools=TOOLS, tool_choice="required").json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    elements = json.loads(daemon.requests[-1].constraint.structural_tag)["format"]["elements"]
    assert [element.get("value") for element in elements] == ["[", None, "]"]


@pytest.mark.parametrize(
    ("model_format", "reply"),
    [
        ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'),
        ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}]'),
        ("qwen3_xml", '[{"name": "weather", "parameters": {"city": "Köln"}}]'),
    ],
)
def test_a_forced_call_that_is_cut_leaves_no_markup(start_gateway, daemon, model_format, reply):
    """Wherever max_tokens falls: content is empty, streamed and whole; the arguments are the beginning of the JSON."""
    gateway = start_gateway(tool_call_parser=model_format)
    for size in [1, 2, 5, 11, 14, 16, 19, 25, 36, 41, 48, len(reply) - 1, len(reply)]:
        daemon.reply = reply[:size]
        message = gateway.chat(tools=TOOLS, tool_choice="required").json()["choices"][0]["message"]
        deltas = [
            chunk["choices"][0]["delta"]
            for chunk in events(gateway.chat(tools=TOOLS, tool_choice="required", stream=True))
        ]
        calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
        whole = "".join(call["function"]["arguments"] for call in message.get("tool_calls", []))
        assert not message["content"], size
        assert "".join(delta.get("content") or "" for delta in deltas) == ""
        assert "".join(call["function"].get("arguments", "") for call in calls) == whole
        assert '{"city": "Köln"}'.startswith(whole)


def test_a_strict_tool_is_forced_whole_and_a_refusal_names_it(tool_gateway, daemon, make_status):
    strict = {"type": "function", "function": {**WEATHER["function"], "name": "strict", "strict": True}}
    place = "constraint.structural_tag.format.elements[0].tags[1].content.json_schema"
    failure = make_status(
        grpc.StatusCode.INVALID_ARGUMENT, f"{place}: uniqueItems is not supported", "INVALID_CONSTRAINT", place
    )
    daemon.failures = [failure, failure]
    named = {"type": "function", "function": {"name": "strict"}}
    only = {"mode": "required", "tools": [{"type": "function", "function": {"name": n}} for n in ("clock", "strict")]}
    fields = {"tools": [*TOOLS, strict], "tool_choice": {"type": "allowed_tools", "allowed_tools": only}}
    error = tool_gateway.chat(**fields).json()["error"]
    assert (error["param"], error["code"]) == ("tools[2].function.parameters", "invalid_schema")
    assert error["message"] == "tools[2].function.parameters: uniqueItems is not supported"
    body = {
        "model": "toy", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}],
        "tools": [{"name": name, "input_schema": {"type": "object"}} for name in ("a", "b")],
        "tool_choice": {"type": "any"},
    }  # fmt: skip
    assert "tools[1].input_schema: uniqueItems" in tool_gateway.post("/v1/messages", body).text
    tool_gateway.chat(tools=[*TOOLS, strict], tool_choice=named)
    tag = json.loads(daemon.requests[-1].constraint.structural_tag)["format"]["elements"][0]["tags"][0]
    assert tag["content"]["lenient"] is False


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}},
            "tool_choice",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "web_search", "function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tool_choice"),
    ],
)
def test_what_cannot_be_is_named(tool_gateway, fields, param):
    response = tool_gateway.chat(**fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


TURN = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}CALL{% endfor %}<|im_end|>\n{% endfor %}{{ tools and '' }}"
)
JSON_ARGUMENTS = "call.function.arguments | tojson"
NAME = "{{ call.function.name }}"
XML = (
    "{% for key, value in call.function.arguments.items() %}<parameter={{ key }}>\n"
    "{{ value if value is string else value | tojson }}\n</parameter>\n{% endfor %}"
)
PYTHONIC = (
    f"{{{{ '[' if loop.first else ', ' }}}}{NAME}({{% for key, value in call.function.arguments.items() %}}"
    "{{ key }}={{ value | tojson }}{{ ', ' if not loop.last }}{% endfor %}){{ ']' if loop.last }}"
)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (f'\n<tool_call>\n{{"name": "{NAME}", "arguments": {{{{ {JSON_ARGUMENTS} }}}}}}\n</tool_call>', "hermes"),
        (f"<tool_call>\n<function={NAME}>\n{XML}</function>\n</tool_call>", "qwen3_xml"),
        (f"[TOOL_CALLS]{NAME}[ARGS]{{{{ {JSON_ARGUMENTS} }}}}", "mistral"),
        (f'{{"name": "{NAME}", "parameters": {{{{ {JSON_ARGUMENTS} }}}}}}', "llama3_json"),
        (
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>" + NAME + "\n```json\n"
            "{{ call.function.arguments + '' }}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "deepseek_v3",
        ),
        (PYTHONIC, "pythonic"),
        # Functionary's: the marker of qwen3_xml, and arguments that its parser loses.
        (f"<function={NAME}>{{{{ {JSON_ARGUMENTS} }}}}</function>", ""),
        # GLM's: the marker of hermes.
        (
            f"<tool_call>{NAME}\n{{% for key, value in call.function.arguments.items() %}}"
            "<arg_key>{{ key }}</arg_key>\n"
            "<arg_value>{{ value }}</arg_value>\n{% endfor %}</tool_call>",
            "",
        ),
        # Phi's, which asks for functools[...] and writes this.
        (f'{{"name": "{NAME}", "arguments": {{{{ {JSON_ARGUMENTS} }}}}}}', ""),
        (f'<tool_call>{{"name": "{NAME}", "arguments": {{}}}}</tool_call>', ""),
        (f'<tool_call>{{"name": "{NAME}", "arguments": {{{{ {JSON_ARGUMENTS} }}}}}}</tool_call> and so', ""),
        ("{{ raise_exception('no calls') }}", ""),
        ("", ""),
    ],
)
def test_the_form_of_calls_is_found_by_writing_some(call, name):
    template = ChatTemplate(TURN.replace("CALL", call), ("<|im_start|>", "<|im_end|>"), "auto", ())

    async def detected():
        renderer = Renderer(workers=1)
        try:
            return await detect_tool_format(renderer, template)
        finally:
            await renderer.close()

    assert asyncio.run(detected()) == name


def test_the_form_is_the_templates_unless_the_operator_names_one(start_gateway, daemon):
    written = f'<tool_call>\n{{"name": "{NAME}", "arguments": {{{{ {JSON_ARGUMENTS} }}}}}}\n</tool_call>'
    daemon.template = TURN.replace("CALL", written)
    daemon.reply = CALLS
    message = start_gateway().chat(tools=TOOLS).json()["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "clock"]
    assert start_gateway(tool_call_parser="none").chat(tools=TOOLS).status_code == 400
    assert (
        start_gateway(tool_call_parser="mistral").chat(tools=TOOLS).json()["choices"][0]["message"]["content"] == CALLS
    )


def test_mistral_reasons_in_marks_of_its_own(start_gateway, daemon):
    daemon.reply = "[THINK]Well.[/THINK]Yes."
    message = start_gateway(reasoning_parser="mistral").chat().json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "Yes.")


def test_tokenize_counts_the_tools(tool_gateway):
    body = {"messages": [{"role": "user", "content": "x"}]}
    without, with_tools = (tool_gateway.post("/tokenize", {**body, **tools}).json() for tools in ({}, {"tools": TOOLS}))
    assert with_tools["count"] > without["count"] + 50


def test_reasoning_is_a_field_of_its_own(tool_gateway, daemon):
    daemon.reply = "<think>\nWell.\n</think>\n\nYes."
    message = tool_gateway.chat().json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "Yes.")
    deltas = [chunk["choices"][0]["delta"] for chunk in events(tool_gateway.chat(stream=True))]
    assert "".join(delta.get("reasoning", "") for delta in deltas) == "Well."
    assert "".join(delta.get("content", "") for delta in deltas) == "Yes."
    hidden = tool_gateway.chat(include_reasoning=False).json()["choices"][0]["message"]
    assert ("reasoning" in hidden, hidden["content"]) == (False, "Yes.")


def test_switching_reasoning_off(tool_gateway, daemon):
    daemon.reply = "<think> is a word."
    for fields in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        message = tool_gateway.chat(**fields).json()["choices"][0]["message"]
        assert (message.get("reasoning"), message["content"]) == (None, "<think> is a word.")
        assert prompt_of(daemon).endswith("<think>\n\n</think>\n\n")


def test_a_constraint_waits_for_the_reasoning(tool_gateway, daemon):
    daemon.reply = "Well.</think>{}"
    message = tool_gateway.chat(response_format={"type": "json_object"}).json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "{}")
    assert daemon.requests[-1].constraint.starts_after == "</think>"
    assert prompt_of(daemon).endswith("assistant\n<think>\n")
    tool_gateway.chat(response_format={"type": "json_object"}, reasoning_effort="none")
    assert daemon.requests[-1].constraint.starts_after == ""


def test_deepseek_reasons_without_a_mark(start_gateway, daemon):
    daemon.reply = "Well.</think>Yes."
    message = start_gateway(reasoning_parser="deepseek_r1").chat().json()["choices"][0]["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "Yes.")
