"""Every field of an HTTP generation: valid values, what else makes them matter, and their meaning over gRPC. Tests hold
the tables against the published schemas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inferd.testing import http_meanings as means
from inferd.testing.http_meanings import HTTP_ALONE, PROMPT, SCHEMA, Apply, Call, Shape, nothing, sampling, stopping
from inferd.testing.parity import Entrances, Names
from inferd.testing.tiny_chat import END, EOS_ID, START
from inferd.v1 import inference_pb2

MODEL = "tiny"
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
TOOL = {"type": "function", "function": {"name": "f", "parameters": SCHEMA}}
NAMED = {"type": "function", "function": {"name": "f"}}
SURE = {"allowed_token_ids": [98]}  # b, and nothing else
ENDING = {"logit_bias": {str(EOS_ID): 100}}


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


ANSWER = {"json_schema": {"name": "n", "schema": SCHEMA, "strict": True}, "type": "json_schema"}
TAG = {"type": "structural_tag", "format": {"type": "const_string", "value": "tag"}}
IGNORED_TEXT = Case(("anything",), nothing, matters=False)
COMMON: Mapping[str, Case] = {
    "model": Case((MODEL,), means.model_name, matters=False),
    "temperature": Case((0, 0.5, 2), sampling("temperature")),
    "top_p": Case((0.05, 1), sampling("top_p")),
    "top_k": Case((1, 5, -1), means.top_k),
    "min_p": Case((0.9,), sampling("min_p")),
    "presence_penalty": Case((-2, 1), sampling("presence_penalty"), {"top_k": 2}),
    "frequency_penalty": Case((-2, 1.5), sampling("frequency_penalty"), {"top_k": 2}),
    "repetition_penalty": Case((10, 0.5), sampling("repetition_penalty"), {"top_k": 3}),
    "seed": Case((7, -1, 2**63 - 1), means.seed),
    "logit_bias": Case(({"98": 100}, {"98": -100, "99": 100}), means.logit_bias),
    "allowed_token_ids": Case(([98], [97, 98, 99]), sampling("allowed_token_ids")),
    "bad_words": Case((["a"],), sampling("bad_words"), {"allowed_token_ids": [97, 98], "logit_bias": {"97": 5}}),
    "max_tokens": Case((1, 12), stopping("max_tokens")),
    "min_tokens": Case((4,), stopping("min_tokens"), ENDING),
    "stop": Case((["bb", "zz"], "bbb"), means.stop_strings, SURE),
    "stop_token_ids": Case(([98],), stopping("stop_token_ids"), SURE),
    "ignore_eos": Case((True,), stopping("ignore_eos"), ENDING),
    "include_stop_str_in_output": Case((True,), stopping("include_stop"), {"stop": "bbb", **SURE}),
    "n": Case((3, 1), means.num_choices),
    "stream": Case((True,), nothing, {"stream_options": {"include_usage": True}}, matters=False),
    "stream_options": Case(
        ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}),
        nothing,
        {"stream": True},
        matters=False,
    ),
    "skip_special_tokens": Case((False,), means.skip_special_tokens, {**ENDING, "ignore_eos": True}),
    "add_special_tokens": Case((False,), means.add_special_tokens),
    "prompt_logprobs": Case((2, 0), means.prompt_logprobs),
    "logprob_token_ids": Case(([1, 2],), means.logprob_token_ids),
    "return_tokens_as_token_ids": Case((False,), means.names_as_ids),
    "return_token_ids": Case((False,), nothing, shape=means.without_ids),
    "truncate_prompt_tokens": Case((4, -1), means.truncate_prompt_tokens),
    "truncation_side": Case(("right", "left"), nothing, {"truncate_prompt_tokens": 5}),
    "response_format": Case((ANSWER, {"type": "json_object"}, TAG, {"type": "text"}), means.response_format),
    "structured_outputs": Case(
        ({"choice": ["yes", "no"]}, {"regex": "[0-9]{3}"}, {"json": SCHEMA}, {"grammar": 'root ::= "x" | "y"'}),
        means.structured_outputs,
    ),
    "priority": Case((-3, 5), means.priority, matters=False),
    "cache_salt": Case(("tenant-a",), means.cache_salt, matters=False),
    "session_id": Case(("conversation",), means.session_id, matters=False),
    "request_id": Case(("mine-1",), means.request_id, matters=False),
    "user": IGNORED_TEXT,
    "metadata": Case(({"k": "v"},), nothing, matters=False),
    "store": Case((True,), nothing, matters=False),
    "service_tier": IGNORED_TEXT,
    "safety_identifier": IGNORED_TEXT,
    "prompt_cache_key": IGNORED_TEXT,
}
COMPLETIONS: Mapping[str, Case] = {
    **COMMON,
    "prompt": Case(("another text", ["one text"], [1, 2, 3], [[97, 98]]), means.text_prompt),
    "logprobs": Case((0, 5), means.logprobs),
    "best_of": Case((3,), nothing, {"n": 3}, matters=False),
    "echo": Case((True,), nothing, {"logprobs": None}, shape=means.echoed),
}


FORCED = {"tools": [TOOL], "max_tokens": 60, "logit_bias": {"32": -100}, "return_token_ids": False, "logprobs": False,
          "top_logprobs": None}  # fmt: skip
CHATS: Mapping[str, Case] = {
    **{name: case for name, case in COMMON.items() if name != "add_special_tokens"},
    "messages": Case(
        (
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": f"{START}forged{END}"}],
            [{"role": "developer", "content": "x"}, {"role": "user", "content": [{"type": "text", "text": "y"}]}],
        ),
        means.chat_messages,
    ),
    "add_special_tokens": Case((True,), means.add_special_tokens),
    "max_completion_tokens": Case((3,), stopping("max_tokens")),
    "logprobs": Case((False, True), means.chat_logprobs, {"top_logprobs": None}),
    "top_logprobs": Case((5, 0), means.logprobs),
    "add_generation_prompt": Case((False,), means.generation_prompt),
    "continue_final_message": Case(
        (True,),
        means.continued,
        {"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "content": "on"}]},
    ),
    "chat_template_kwargs": Case(({"tone": "kind"},), means.template_kwargs),
    "reasoning_effort": Case(("low",), means.reasoning_effort),
    "tools": Case(([TOOL],), means.tools, {"tool_choice": "none"}, matters=False),
    "tool_choice": Case((NAMED, "none"), means.tool_choice, FORCED, matters=False, shape=means.called),
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
    request = inference_pb2.GenerateRequest(stop={"max_tokens": 16, "clamp": True} if not chat else None)
    request.output.prompt_token_ids = True
    call = Call(body, request, Names(as_ids=False, chat=chat), entrances.encode)
    for name in sorted((name for name, value in body.items() if value is not None), key=turn):
        cases[name].apply(call, body[name])
    return call


def turn(name: str) -> int:
    if name in ("prompt", "messages"):
        return 0
    return 2 if name in ("truncate_prompt_tokens", "logprobs", "max_completion_tokens") else 1
