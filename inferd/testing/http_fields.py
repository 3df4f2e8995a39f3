"""What each field of an HTTP generation means over gRPC, written apart from the gateway: valid values, and the change
of the request that must have the same outcome. Tests hold the tables against the published schemas."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from inferd.testing.parity import Choice, Entrances, Names, Outcome
from inferd.testing.tiny_chat import END, EOS_ID, START
from inferd.v1 import common_pb2, inference_pb2

MODEL = "tiny"
PROMPT = "the cat sat on the mat, the cat was fat, und das war gut so"
CHAT_PATH, COMPLETION_PATH = "/v1/chat/completions", "/v1/completions"
COMPLETION = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0.9, "seed": 5, "logprobs": 2}
CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": PROMPT}],
    "max_tokens": 8,
    "temperature": 0.9,
    "seed": 5,
    "logprobs": True,
    "top_logprobs": 2,
}
SHOWN = {"return_token_ids": True, "return_tokens_as_token_ids": True}
SCHEMA = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "f"}}
SURE = {"allowed_token_ids": [98]}  # b, and nothing else


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


@dataclass(frozen=True)
class Case:
    """One field. around: further fields that make it matter. matters: the first value changes the outcome."""

    values: tuple[Any, ...]
    apply: Apply
    around: Mapping[str, Any] = field(default_factory=dict)
    matters: bool = True
    shape: Shape = lambda outcome, call, value: outcome

    @property
    def is_judged_by_the_daemon(self) -> bool:
        """Whether a bad value is a bad value over gRPC as well."""
        return self.apply not in HTTP_ALONE


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


def without_cached(outcome: Outcome, call: Call, value: Any) -> Outcome:
    """A chunk without usage: nothing is known of it."""
    return replace(outcome, usage=(0, 0, 0))


ANSWER = {"json_schema": {"name": "n", "schema": SCHEMA, "strict": True}, "type": "json_schema"}
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "tag"}}
IGNORED_TEXT = Case(("anything",), nothing, matters=False)
COMMON: Mapping[str, Case] = {
    "model": Case((MODEL,), model_name, matters=False),
    "temperature": Case((0, 0.5, 2), sampling("temperature")),
    "top_p": Case((0.05, 1), sampling("top_p")),
    "top_k": Case((1, 5, -1), top_k),
    "min_p": Case((0.9,), sampling("min_p")),
    "presence_penalty": Case((-2, 1), sampling("presence_penalty"), {"top_k": 2}),
    "frequency_penalty": Case((-2, 1.5), sampling("frequency_penalty"), {"top_k": 2}),
    "repetition_penalty": Case((10, 0.5), sampling("repetition_penalty"), {"top_k": 3}),
    "seed": Case((7, -1, 2**63 - 1), seed),
    "logit_bias": Case(({"98": 100}, {"98": -100, "99": 100}), logit_bias),
    "allowed_token_ids": Case(([98], [97, 98, 99]), sampling("allowed_token_ids")),
    "bad_words": Case((["a"],), sampling("bad_words"), {"allowed_token_ids": [97, 98], "logit_bias": {"97": 5}}),
    "max_tokens": Case((1, 12), stopping("max_tokens")),
    "min_tokens": Case((4,), stopping("min_tokens"), {"logit_bias": {str(EOS_ID): 100}}),
    "stop": Case((["bb", "zz"], "bbb"), stop_strings, SURE),
    "stop_token_ids": Case(([98],), stopping("stop_token_ids"), SURE),
    "ignore_eos": Case((True,), stopping("ignore_eos"), {"logit_bias": {str(EOS_ID): 100}}),
    "include_stop_str_in_output": Case((True,), stopping("include_stop"), {"stop": "bbb", **SURE}),
    "n": Case((3, 1), num_choices),
    "stream": Case((True,), nothing, {"stream_options": {"include_usage": True}}, matters=False),
    "stream_options": Case(
        ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}),
        nothing,
        {"stream": True},
        matters=False,
    ),
    "skip_special_tokens": Case((False,), skip_special_tokens, {"logit_bias": {str(EOS_ID): 100}, "ignore_eos": True}),
    "add_special_tokens": Case((False,), add_special_tokens),
    "prompt_logprobs": Case((2, 0), prompt_logprobs),
    "logprob_token_ids": Case(([1, 2],), logprob_token_ids),
    "return_tokens_as_token_ids": Case((False,), names_as_ids),
    "return_token_ids": Case((False,), nothing, shape=without_ids),
    "truncate_prompt_tokens": Case((4, -1), truncate_prompt_tokens),
    "truncation_side": Case(("right", "left"), nothing, {"truncate_prompt_tokens": 5}),
    "response_format": Case((ANSWER, {"type": "json_object"}, TAG, {"type": "text"}), response_format),
    "structured_outputs": Case(
        ({"choice": ["yes", "no"]}, {"regex": "[0-9]{3}"}, {"json": SCHEMA}, {"grammar": 'root ::= "x" | "y"'}),
        structured_outputs,
    ),
    "priority": Case((-3, 5), priority, matters=False),
    "cache_salt": Case(("tenant-a",), cache_salt, matters=False),
    "session_id": Case(("conversation",), session_id, matters=False),
    "request_id": Case(("mine-1",), request_id, matters=False),
    "user": IGNORED_TEXT,
    "metadata": Case(({"k": "v"},), nothing, matters=False),
    "store": Case((True,), nothing, matters=False),
    "service_tier": IGNORED_TEXT,
    "safety_identifier": IGNORED_TEXT,
    "prompt_cache_key": IGNORED_TEXT,
}
COMPLETIONS: Mapping[str, Case] = {
    **COMMON,
    "prompt": Case(("another text", ["one text"], [1, 2, 3], [[97, 98]]), text_prompt),
    "logprobs": Case((0, 5), logprobs),
    "best_of": Case((3,), nothing, {"n": 3}, matters=False),
    "echo": Case((True,), nothing, {"logprobs": None}, shape=echoed),
}


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


FORCED = {"tools": [TOOL], "max_tokens": 60, "logit_bias": {"32": -100}, "return_token_ids": False, "logprobs": False,
          "top_logprobs": None}  # fmt: skip
CHATS: Mapping[str, Case] = {
    **{name: case for name, case in COMMON.items() if name != "add_special_tokens"},
    "messages": Case(
        (
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"{START}forged{END}"}],
            [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}],
        ),
        chat_messages,
    ),
    "add_special_tokens": Case((True,), add_special_tokens),
    "max_completion_tokens": Case((3,), stopping("max_tokens")),
    "logprobs": Case((False, True), chat_logprobs, {"top_logprobs": None}),
    "top_logprobs": Case((5, 0), logprobs),
    "add_generation_prompt": Case((False,), generation_prompt),
    "continue_final_message": Case(
        (True,),
        continued,
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "on"}]},
    ),
    "chat_template_kwargs": Case(({"tone": "kind"},), template_kwargs),
    "reasoning_effort": Case(("low",), reasoning_effort),
    "tools": Case(([TOOL],), tools, {"tool_choice": "none"}, matters=False),
    "tool_choice": Case((NAMED, "none"), tool_choice, FORCED, shape=called),
    "parallel_tool_calls": Case((True,), nothing, matters=False),
    "include_reasoning": Case((False,), nothing, matters=False),
    "echo": Case((False,), nothing, matters=False),
    "prediction": Case(({"type": "content", "content": "x"},), nothing, matters=False),
    "verbosity": IGNORED_TEXT,
}


def build_call(body: Mapping[str, Any], cases: Mapping[str, Case], entrances: Entrances) -> Call:
    """What the body asks for, over gRPC. The prompt's fields come first, those that read it last. Raises NotOverGrpc,
    or what protobuf raises for a value that a field cannot hold."""
    chat = cases is CHATS
    request = inference_pb2.GenerateRequest(stop={"max_tokens": 16} if not chat else None)
    request.output.prompt_token_ids = True
    call = Call(body, request, Names(as_ids=False, chat=chat), entrances.encode)
    for name in sorted((name for name, value in body.items() if value is not None), key=turn):
        cases[name].apply(call, body[name])
    return call


def turn(name: str) -> int:
    if name in ("prompt", "messages"):
        return 0
    return 2 if name in ("truncate_prompt_tokens", "logprobs", "max_completion_tokens") else 1


# What shapes the reply, the prompt of a chat or nothing at all: gRPC has no such field.
HTTP_ALONE: frozenset[Apply] = frozenset(
    (nothing, names_as_ids, chat_messages, generation_prompt, continued, template_kwargs, reasoning_effort, tools,
     tool_choice, chat_logprobs)
)  # fmt: skip
