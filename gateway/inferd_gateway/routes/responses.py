"""POST /v1/responses, the stateless part: nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferd_gateway import convert
from inferd_gateway.choice_parser import ParsePlan
from inferd_gateway.context import CurrentCall
from inferd_gateway.directory import ServedModel
from inferd_gateway.errors import ApiError
from inferd_gateway.generation import Generator
from inferd_gateway.responses_input import FIELDS, chat_body
from inferd_gateway.responses_reply import ResponseReply, new_id
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.chat import ChatRequest
from inferd_gateway.schemas.replies import NamedEvent
from inferd_gateway.schemas.responses import ResponsesRequest
from inferd_gateway.schemas.responses_replies import ResponseObject
from inferd_gateway.sse import EventStream, until_disconnect
from inferd_gateway.turn import prepare

router = APIRouter(route_class=KeyRoute, responses=errors())


@router.post("/v1/responses", responses=answers(ResponseObject, NamedEvent))
async def create_response(body: ResponsesRequest, call: CurrentCall) -> Response:
    call.accept(body)
    chat = chat_body(body)
    convert.check_chat(chat)
    model = await call.gateway.directory.resolve(body.model, call.affinity(chat, chat.messages))
    call.record.model = model.name
    job = ResponseJob(Generator(call, model, call.rpc_context(), FIELDS), model, body, chat)
    call.record.reply_id = job.reply_id
    if body.stream:
        keepalive = call.gateway.settings.sse_keepalive
        return await EventStream.opened(call.request, job.stream(), keepalive, job.on_error)
    return await until_disconnect(call.request, job.whole())


class ResponseJob:
    """One call."""

    def __init__(self, generator: Generator, model: ServedModel, body: ResponsesRequest, chat: ChatRequest) -> None:
        self.reply_id = new_id("resp")
        self._generator = generator
        self._model = model
        self._body = body
        self._chat = chat
        self._reply: ResponseReply | None = None

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._run()) as events:
            async for data in events:
                yield data
        assert self._reply is not None
        yield self._reply.end()

    async def whole(self) -> Response:
        async with aclosing(self._run()) as events:
            async for _ in events:
                pass
        assert self._reply is not None
        self._reply.end()
        return JSONResponse(self._reply.response())

    def on_error(self, error: ApiError) -> bytes:
        return (self._reply or self._new_reply(ParsePlan())).fail(error)

    def _new_reply(self, plan: ParsePlan) -> ResponseReply:
        return ResponseReply(self.reply_id, self._body.model or self._model.public_names[0], self._body, plan)

    async def _run(self) -> AsyncGenerator[bytes, None]:
        turn = await prepare(self._generator, self._model, self.reply_id, self._chat)
        self._reply = self._new_reply(turn.plan)
        async with aclosing(self._generator.run(turn.request)) as messages:
            async for message in messages:
                yield self._reply.events(message)
