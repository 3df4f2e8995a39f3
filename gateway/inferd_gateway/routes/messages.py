"""POST /v1/messages and /v1/messages/count_tokens, Anthropic's API."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferd_gateway import convert
from inferd_gateway.api_errors import anthropic_error
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.context import CurrentCall
from inferd_gateway.directory import ServedModel
from inferd_gateway.errors import ApiError
from inferd_gateway.generation import Generator
from inferd_gateway.messages_input import FIELDS, chat_body
from inferd_gateway.messages_reply import MessageReply
from inferd_gateway.replies import named_event
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.chat import ChatRequest
from inferd_gateway.schemas.messages import CountTokensRequest, MessagesRequest
from inferd_gateway.schemas.messages_replies import MessageErrorReply, MessageObject, TokenCount
from inferd_gateway.schemas.replies import NamedEvent
from inferd_gateway.sse import EventStream, until_disconnect
from inferd_gateway.tools import plan_tools
from inferd_gateway.turn import chat_conversation, prepare

router = APIRouter(route_class=KeyRoute, responses=errors(MessageErrorReply))


@router.post("/v1/messages", responses=answers(MessageObject, NamedEvent))
async def create_message(body: MessagesRequest, call: CurrentCall) -> Response:
    call.accept(body)
    chat = chat_body(body)
    model = await call.gateway.directory.resolve(body.model, call.affinity(chat, chat.messages))
    call.record.model = model.name
    job = MessageJob(Generator(call, model, call.rpc_context(), FIELDS), model, chat)
    call.record.reply_id = job.reply_id

    def on_error(error: ApiError) -> bytes:
        return named_event("error", anthropic_error(error, call.record.request_id))

    if body.stream:
        keepalive = call.gateway.settings.sse_keepalive
        return await EventStream.opened(call.request, job.stream(), keepalive, on_error)
    return await until_disconnect(call.request, job.whole())


@router.post("/v1/messages/count_tokens", responses=answers(TokenCount))
async def count_tokens(body: CountTokensRequest, call: CurrentCall) -> dict[str, int]:
    call.accept(body)
    model = await call.gateway.directory.resolve(body.model)
    call.record.model = model.name
    generator = Generator(call, model, call.rpc_context(), FIELDS)

    async def work() -> dict[str, int]:
        chat = chat_body(body)
        tools = plan_tools(chat.tools, chat.tool_choice, chat.parallel_tool_calls)
        runs = await generator.render(chat_conversation(chat, tools))
        tokenized = await generator.tokenize(convert.segments_prompt(runs, None))
        return {"input_tokens": tokenized.count}

    return await until_disconnect(call.request, work())


class MessageJob:
    """One call."""

    def __init__(self, generator: Generator, model: ServedModel, chat: ChatRequest) -> None:
        self.reply_id = f"msg_{uuid.uuid4().hex}"
        self._generator = generator
        self._model = model
        self._chat = chat

    def _reply(self, plan: ParsePlan) -> MessageReply:
        return MessageReply(self.reply_id, self._chat.model or self._model.name, plan)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        turn = await prepare(self._generator, self._model, self.reply_id, self._chat)
        reply = self._reply(turn.plan)
        async with aclosing(self._generator.run(turn.request)) as messages:
            async for message in messages:
                yield reply.events(message)
        yield reply.end()

    async def whole(self) -> Response:
        turn = await prepare(self._generator, self._model, self.reply_id, self._chat)
        reply = self._reply(turn.plan)
        async with aclosing(self._generator.run(turn.request)) as messages:
            async for message in messages:
                reply.events(message)
        reply.end()
        return JSONResponse(reply.message())
