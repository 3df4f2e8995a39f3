"""One chat turn made ready: the request to the daemon, and how its text is to be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inferd.v1 import inference_pb2 as pb
from inferd_gateway import convert
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.conversation import conversation
from inferd_gateway.directory import ServedModel
from inferd_gateway.errors import invalid
from inferd_gateway.generation import Generator
from inferd_gateway.parsers.reasoning import REASONING_FORMATS, ReasoningFormat, Start
from inferd_gateway.parsers.registry import ToolFormat
from inferd_gateway.schemas.chat import ChatFields, ChatRequest
from inferd_gateway.templates.renderer import Conversation
from inferd_gateway.tools import (
    SCHEMA_FIELD,
    ToolPlan,
    calls_constraint,
    format_of_calls,
    plan_tools,
    schema_fields,
)


@dataclass(frozen=True)
class ChatTurn:
    """What Generator.run is given, and the parsers of what it answers."""

    request: pb.GenerateRequest
    plan: ParsePlan


def chat_conversation(body: ChatFields, tools: ToolPlan) -> Conversation:
    """reasoning_effort goes to the template by that name; templates that only know on and off get enable_thinking."""
    kwargs: dict[str, Any] = {}
    if body.reasoning_effort is not None:
        kwargs["reasoning_effort"] = body.reasoning_effort
        if body.reasoning_effort == "none":
            kwargs["enable_thinking"] = False
    return conversation(body, kwargs, tools.for_template())


async def prepare(generator: Generator, model: ServedModel, reply_id: str, body: ChatRequest) -> ChatTurn:
    """Raises ApiError."""
    tools = plan_tools(body.tools, body.tool_choice, body.parallel_tool_calls)
    tool_format = format_of_calls(tools, model.tool_format)
    asked = convert.constraint_of(body)
    if tools.callable and asked is not None:
        message = (
            "A constrained output leaves no room for tool calls: set tool_choice to 'none', or leave one of the two."
        )
        raise invalid("tool_choice", message)
    talk = chat_conversation(body, tools)
    runs = await generator.render(talk)
    constraint = asked
    if tools.forced:
        assert tool_format is not None
        assert tool_format.frame is not None
        constraint = calls_constraint(tools, tool_format.frame)
        generator.name_fields(schema_fields(tools, tool_format.frame, generator.fields[SCHEMA_FIELD]))
    start = reasoning_start(talk, model, runs)
    marks = REASONING_FORMATS.get(model.reasoning_format, ReasoningFormat())
    if constraint is not None and start is not None:
        if start is Start.PERHAPS and thinks_by_default(body, model):
            # A constraint that waits for the end of the reasoning needs reasoning that has begun.
            runs.append((f"{marks.open}\n", True))
            start = Start.INSIDE
        if start is Start.INSIDE:
            constraint.starts_after = marks.close
    request = await generate_request(generator, model, reply_id, body, runs)
    if constraint is not None:
        request.constraint.CopyFrom(constraint)
    return ChatTurn(request, parse_plan(body, model, tools, tool_format, start, request))


async def generate_request(
    generator: Generator, model: ServedModel, reply_id: str, body: ChatRequest, runs: list[tuple[str, bool]]
) -> pb.GenerateRequest:
    prompt = convert.segments_prompt(runs, body.add_special_tokens)
    if body.truncate_prompt_tokens not in (None, -1):
        cut_left = body.truncation_side != "right"
        prompt = await generator.truncated(prompt, body.truncate_prompt_tokens or 0, cut_left=cut_left)
    request = convert.generate_request(body, model.name, prompt, reply_id)
    if body.logprobs:
        request.output.logprobs.CopyFrom(convert.logprob_options(body.top_logprobs or 0, body))
    return request


def parse_plan(
    body: ChatRequest, model: ServedModel, tools: ToolPlan, form: ToolFormat | None, start: Start | None,
    request: pb.GenerateRequest,
) -> ParsePlan:  # fmt: skip
    """Sets what the parsers need in the request's output options."""
    marks = REASONING_FORMATS.get(model.reasoning_format, ReasoningFormat())
    special = {token.text for token in model.info.tokenizer.special_tokens}
    seen = special.intersection(form.markers if form else ()) | (
        special & {marks.open, marks.close} if start else set()
    )
    hidden: tuple[str, ...] = ()
    if seen and body.skip_special_tokens is not False:
        hidden = tuple(sorted(special - seen))
        request.output.skip_special_tokens = False
    if start is not None:
        request.output.token_ids = True
    return ParsePlan(
        reasoning=start,
        reasoning_format=marks,
        include_reasoning=body.include_reasoning is not False,
        reasoning_end=model.reasoning_end,
        tools=(lambda: form.make(tools.schemas())) if form else None,
        one_call=tools.one,
        only_calls=tools.forced,
        hidden=hidden,
    )


def reasoning_start(talk: Conversation, model: ServedModel, runs: list[tuple[str, bool]]) -> Start | None:
    """Where the answer begins; None when the model's text is not split."""
    marks = REASONING_FORMATS.get(model.reasoning_format)
    if marks is None:
        return None
    if talk.continue_final_message:
        text = "".join(talk.messages[-1]["content"])
        return Start.INSIDE if text.rfind(marks.open) > text.rfind(marks.close) else Start.ANSWER
    tail = "".join(text for text, _ in runs[-3:]).rstrip()
    if tail.endswith(marks.open):
        return Start.INSIDE
    if tail.endswith(marks.close):
        return Start.ANSWER
    return Start.INSIDE if marks.always else Start.PERHAPS


def thinks_by_default(body: ChatRequest, model: ServedModel) -> bool:
    """Whether the template has a switch, and nobody turned it off."""
    wanted = (body.chat_template_kwargs or {}).get("enable_thinking", body.reasoning_effort != "none")
    return bool(wanted) and model.chat_template is not None and "enable_thinking" in model.chat_template.source
