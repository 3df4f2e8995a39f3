"""The meaning of a field of an HTTP generation: the change of a gRPC request that must have the same outcome, and of
the outcome where the field shapes the reply."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from inferd.testing.parity import Choice, Names, Outcome
from inferd.testing.tiny_chat import END, START
from inferd.v1 import common_pb2, inference_pb2

PROMPT = "the cat sat on the mat, the cat was fat, und das war gut so"
SCHEMA = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}


class NotOverGrpc(Exception):
    """The value has no form in the proto: a caller of gRPC cannot even write it."""


@dataclass
class Call:
    """A gRPC call in the making, beside the HTTP body that asks for the same."""

    body: Mapping[str, Any]
    request: inference_pb2.GenerateRequest
    names: Names
    encode: Callable[[common_pb2.Prompt], list[int]]


Apply = Callable[[Call, Any], None]
Shape = Callable[[Outcome, Call, Any], Outcome]


def nothing(call: Call, value: Any) -> None:
    """The field changes nothing that is generated."""


def sampling(name: str) -> Apply:
    def apply(call: Call, value: Any) -> None:
        if isinstance(value, list):
            getattr(call.request.sampling, name)[:] = value
        else:
            setattr(call.request.sampling, name, value)

    return apply


def stopping(name: str) -> Apply:
    def apply(call: Call, value: Any) -> None:
        if name == "max_tokens":
            call.request.stop.clamp = call.names.chat  # of a conversation it is a bound, of a completion a number
        if isinstance(value, list):
            getattr(call.request.stop, name)[:] = value
        else:
            setattr(call.request.stop, name, value)

    return apply


def top_k(call: Call, value: int) -> None:
    """vLLM's -1 is our 0."""
    call.request.sampling.top_k = 0 if value == -1 else value


def seed(call: Call, value: int) -> None:
    """The 64 bits of a signed number."""
    if not -(2**63) <= value < 2**63:
        raise NotOverGrpc
    call.request.sampling.seed = value & (2**64 - 1)


def logit_bias(call: Call, value: Mapping[str, float]) -> None:
    for key, bias in value.items():
        if not (key.isascii() and key.isdigit()):
            raise NotOverGrpc
        call.request.sampling.logit_bias[int(key)] = bias


def stop_strings(call: Call, value: str | list[str]) -> None:
    call.request.stop.stop_strings[:] = [value] if isinstance(value, str) else value


def num_choices(call: Call, value: int) -> None:
    call.request.num_choices = value


def priority(call: Call, value: int) -> None:
    """vLLM's lower goes first, our higher."""
    call.request.priority = -value


def request_id(call: Call, value: str) -> None:
    call.request.request_id = f"{'chatcmpl' if call.names.chat else 'cmpl'}-{value}"


def cache_salt(call: Call, value: str) -> None:
    call.request.cache.salt = value


def session_id(call: Call, value: str) -> None:
    call.request.cache.session_id = value


def skip_special_tokens(call: Call, value: bool) -> None:
    call.request.output.skip_special_tokens = value


def names_as_ids(call: Call, value: bool) -> None:
    call.names = replace(call.names, as_ids=value)


def logprobs(call: Call, value: int) -> None:
    call.request.output.logprobs.top_n = value
    call.request.output.logprobs.token_bytes = True


def prompt_logprobs(call: Call, value: int) -> None:
    call.request.output.prompt_logprobs.top_n = value
    call.request.output.prompt_logprobs.token_bytes = True


def chat_logprobs(call: Call, value: bool) -> None:
    """Without it nothing else of logprobs counts."""
    if value:
        call.request.output.logprobs.token_bytes = True
    else:
        call.request.output.ClearField("logprobs")


def logprob_token_ids(call: Call, value: list[int]) -> None:
    call.request.output.logprobs.token_ids[:] = value


def model_name(call: Call, value: str) -> None:
    call.request.model = value


def text_prompt(call: Call, value: Any) -> None:
    if isinstance(value, str):
        call.request.prompt.text = value
    elif len(value) == 1 and isinstance(value[0], str):
        call.request.prompt.text = value[0]
    elif len(value) == 1 and isinstance(value[0], list):
        call.request.prompt.token_ids.ids[:] = value[0]
    else:
        call.request.prompt.token_ids.ids[:] = value
        if not value:
            raise NotOverGrpc


def add_special_tokens(call: Call, value: bool) -> None:
    call.request.prompt.add_special_tokens = value


def truncate_prompt_tokens(call: Call, value: int) -> None:
    """So many tokens of the end, or of the start with truncation_side right; -1: what fits."""
    right = call.body.get("truncation_side") == "right"
    if value == -1:
        keep = common_pb2.TRUNCATION_KEEP_START if right else common_pb2.TRUNCATION_KEEP_END
        call.request.truncation = keep
        return
    if value < 1:
        raise NotOverGrpc
    ids = call.encode(call.request.prompt)
    call.request.prompt.Clear()
    call.request.prompt.token_ids.ids[:] = ids[:value] if right else ids[-value:]


def response_format(call: Call, value: Mapping[str, Any]) -> None:
    constraint = call.request.constraint
    match value["type"]:
        case "text":
            call.request.ClearField("constraint")
        case "json_object":
            constraint.json_object.SetInParent()
        case "json_schema":
            constraint.json_schema = json.dumps(value["json_schema"]["schema"])
            constraint.lenient = not value["json_schema"].get("strict")
        case "structural_tag":
            constraint.structural_tag = json.dumps(value)
        case _:
            raise NotOverGrpc


def structured_outputs(call: Call, value: Mapping[str, Any]) -> None:
    if len(value) != 1:
        raise NotOverGrpc
    ((name, given),) = value.items()
    constraint, text = call.request.constraint, given if isinstance(given, str) else json.dumps(given)
    match name:
        case "choice":
            constraint.choices.values[:] = given
        case "json_object":
            constraint.json_object.SetInParent()
        case "json":
            constraint.json_schema = text
        case "grammar":
            constraint.ebnf = text
        case "regex" | "structural_tag":
            setattr(constraint, name, text)
        case _:
            raise NotOverGrpc


def without_ids(outcome: Outcome, call: Call, value: bool) -> Outcome:
    if value:
        return outcome
    return replace(outcome, choices=[replace(choice, token_ids=[]) for choice in outcome.choices], prompt_ids=None)


def echoed(outcome: Outcome, call: Call, value: bool) -> Outcome:
    return replace(outcome, choices=[replace(choice, text=PROMPT + choice.text) for choice in outcome.choices])


def segments(call: Call, messages: list[Mapping[str, Any]], *, answer: bool = True, before: str = "") -> None:
    """The prompt that the tiny chat model's template makes: no text of a message may become a control token."""
    runs = call.request.prompt.segments.segments
    del runs[:]
    for message in messages:
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part["text"] for part in content)
        role = "system" if message["role"] == "developer" else message["role"]
        runs.add(text=f"{START}{role}\n", parse_special=True)
        runs.add(text=content)
        runs.add(text=f"{END}\n", parse_special=True)
    if before:
        runs.add(text=before)
    if answer:
        runs.add(text=f"{START}assistant\n", parse_special=True)
    call.request.prompt.add_special_tokens = False


def chat_messages(call: Call, value: list[Mapping[str, Any]]) -> None:
    if not value:
        raise NotOverGrpc
    segments(call, value)


def generation_prompt(call: Call, value: bool) -> None:
    segments(call, call.body["messages"], answer=value)


def continued(call: Call, value: bool) -> None:
    """The last message stays open."""
    if not value:
        return
    *_, last = call.body["messages"]
    segments(call, call.body["messages"], answer=False)
    del call.request.prompt.segments.segments[-1]
    assert call.request.prompt.segments.segments[-1].text == last["content"]


def template_kwargs(call: Call, value: Mapping[str, Any]) -> None:
    segments(call, call.body["messages"], before=f"tone: {value['tone']}\n" if value else "")


def reasoning_effort(call: Call, value: str) -> None:
    segments(call, call.body["messages"], before=f"effort: {value}\n")


def tools(call: Call, value: list[Mapping[str, Any]]) -> None:
    if value and call.body.get("tool_choice") != "none":
        segments(call, call.body["messages"], before=json.dumps(value, ensure_ascii=False) + "\n")


def tool_choice(call: Call, value: Any) -> None:
    """Held to calls of the tool. The call that this model would be forced to make has one form."""
    if value == "none":
        segments(call, call.body["messages"])
        return
    tag: dict[str, Any] = {"type": "tag", "begin": '{"name": "f", "parameters": ', "end": "}"}
    tag["content"] = {"type": "json_schema", "json_schema": SCHEMA}
    tags = {"type": "tags_with_separator", "tags": [tag], "separator": ", ", "at_least_one": True}
    brackets = ({"type": "const_string", "value": bracket} for bracket in "[]")
    elements = [next(brackets), {**tags, "stop_after_first": True}, next(brackets)]
    call.request.constraint.structural_tag = json.dumps({"format": {"type": "sequence", "elements": elements}})


def called(outcome: Outcome, call: Call, value: Any) -> Outcome:
    """The text is read as calls."""
    if value == "none":
        return outcome
    return replace(outcome, choices=[as_call(choice) for choice in outcome.choices])


def as_call(choice: Choice) -> Choice:
    calls = json.loads(choice.text)
    made = [(each["name"], each["parameters"]) for each in calls]
    return replace(choice, text="", finish="tool_calls", calls=made)


# What shapes the reply, the prompt of a chat or nothing at all: gRPC has no such field.
HTTP_ALONE: frozenset[Apply] = frozenset(
    (nothing, names_as_ids, chat_messages, generation_prompt, continued, template_kwargs, reasoning_effort, tools,
     tool_choice, chat_logprobs)
)  # fmt: skip
