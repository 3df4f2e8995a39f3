"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferd.v1 import inference_pb2 as pb
from inferd_gateway import convert
from inferd_gateway.chat_reply import ChatStream, ChatWhole
from inferd_gateway.context import CurrentCall, new_id
from inferd_gateway.conversation import conversation
from inferd_gateway.generation import Generator
from inferd_gateway.replies import Head
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.schemas.chat import ChatRequest
from inferd_gateway.sse import EventStream, until_disconnect

router = APIRouter(route_class=KeyRoute)


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, call: CurrentCall) -> Response:
    call.accept(body)
    convert.check_chat(body)
    model = await call.gateway.directory.resolve(body.model, call.affinity(body, body.messages))
    call.record.model = model.name
    generator = Generator(call, model, call.rpc_context(), convert.fields_of(body))
    head = Head(
        new_id("chatcmpl", body.request_id),
        "chat.completion.chunk" if body.stream else "chat.completion",
        body.model or model.public_names[0],
        model.fingerprint,
    )
    call.record.reply_id = head.reply_id
    if body.stream:
        events = stream_chat(generator, model.name, head, body)
        return await EventStream.opened(call.request, events, call.gateway.settings.sse_keepalive)
    return await until_disconnect(call.request, whole_chat(generator, model.name, head, body))


async def chat_request(generator: Generator, model: str, reply_id: str, body: ChatRequest) -> pb.GenerateRequest:
    kwargs = {} if body.reasoning_effort is None else {"reasoning_effort": body.reasoning_effort}
    runs = await generator.render(conversation(body, kwargs))
    prompt = convert.segments_prompt(runs, body.add_special_tokens)
    if body.truncate_prompt_tokens not in (None, -1):
        cut_left = body.truncation_side != "right"
        prompt = await generator.truncated(prompt, body.truncate_prompt_tokens or 0, cut_left=cut_left)
    request = convert.generate_request(body, model, prompt, reply_id)
    if body.logprobs:
        request.output.logprobs.CopyFrom(convert.logprob_options(body.top_logprobs or 0, body))
    return request


async def stream_chat(generator: Generator, model: str, head: Head, body: ChatRequest) -> AsyncGenerator[bytes, None]:
    request = await chat_request(generator, model, head.reply_id, body)
    stream = ChatStream(head, body)
    async with aclosing(generator.run(request)) as messages:
        async for message in messages:
            yield stream.events(message)
    yield stream.end()


async def whole_chat(generator: Generator, model: str, head: Head, body: ChatRequest) -> Response:
    request = await chat_request(generator, model, head.reply_id, body)
    whole = ChatWhole(head, body)
    async with aclosing(generator.run(request)) as messages:
        async for message in messages:
            whole.add(message)
    return JSONResponse(whole.reply())
