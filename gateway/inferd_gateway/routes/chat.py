"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferd_gateway import convert
from inferd_gateway.chat_reply import ChatStream, ChatWhole
from inferd_gateway.context import CurrentCall, new_id
from inferd_gateway.directory import ServedModel
from inferd_gateway.generation import Generator
from inferd_gateway.replies import Head
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.chat import ChatRequest
from inferd_gateway.schemas.replies import ChatCompletion, ChatCompletionChunk
from inferd_gateway.sse import EventStream, until_disconnect
from inferd_gateway.turn import prepare

router = APIRouter(route_class=KeyRoute, responses=errors())


@router.post("/v1/chat/completions", responses=answers(ChatCompletion, ChatCompletionChunk))
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
        events = stream_chat(generator, model, head, body)
        return await EventStream.opened(call.request, events, call.gateway.settings.sse_keepalive)
    return await until_disconnect(call.request, whole_chat(generator, model, head, body))


async def stream_chat(
    generator: Generator, model: ServedModel, head: Head, body: ChatRequest
) -> AsyncGenerator[bytes, None]:
    turn = await prepare(generator, model, head.reply_id, body)
    stream = ChatStream(head, body, turn.plan)
    async with aclosing(generator.run(turn.request)) as messages:
        async for message in messages:
            yield stream.events(message)
    yield stream.end()


async def whole_chat(generator: Generator, model: ServedModel, head: Head, body: ChatRequest) -> Response:
    turn = await prepare(generator, model, head.reply_id, body)
    whole = ChatWhole(head, body, turn.plan)
    async with aclosing(generator.run(turn.request)) as messages:
        async for message in messages:
            whole.add(message)
    return JSONResponse(whole.reply())
