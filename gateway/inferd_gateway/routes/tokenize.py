"""POST /tokenize and POST /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from inferd_gateway import convert
from inferd_gateway.context import CurrentCall
from inferd_gateway.generation import Generator
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.replies import DetokenizeReply, TokenizeReply
from inferd_gateway.schemas.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from inferd_gateway.sse import until_disconnect
from inferd_gateway.tools import plan_tools
from inferd_gateway.turn import chat_conversation

router = APIRouter(route_class=KeyRoute, responses=errors())


@router.post("/tokenize", responses=answers(TokenizeReply))
async def tokenize(body: TokenizeChatRequest | TokenizeTextRequest, call: CurrentCall) -> dict[str, Any]:
    call.accept(body)
    model = await call.gateway.directory.resolve(body.model)
    call.record.model = model.name
    chat = isinstance(body, TokenizeChatRequest)
    generator = Generator(call, model, call.rpc_context(), convert.CHAT_FIELDS if chat else convert.FIELDS)

    async def work() -> dict[str, Any]:
        if isinstance(body, TokenizeChatRequest):
            runs = await generator.render(chat_conversation(body, plan_tools(body.tools, None, None)))
            prompt = convert.segments_prompt(runs, body.add_special_tokens)
        else:
            prompt = convert.plain_prompt(body.prompt, body.add_special_tokens)
        found = await generator.tokenize(prompt, strings=bool(body.return_token_strs))
        return {
            "count": len(found.token_ids),
            "max_model_len": model.context_tokens,
            "tokens": list(found.token_ids),
            "token_strs": list(found.vocabulary_strings) if body.return_token_strs else None,
        }

    return await until_disconnect(call.request, work())


@router.post("/detokenize", responses=answers(DetokenizeReply))
async def detokenize(body: DetokenizeRequest, call: CurrentCall) -> dict[str, Any]:
    call.accept(body)
    model = await call.gateway.directory.resolve(body.model)
    call.record.model = model.name
    generator = Generator(call, model, call.rpc_context(), {"inputs": "tokens"})
    skip = bool(body.skip_special_tokens)
    texts = await until_disconnect(call.request, generator.detokenize([body.tokens], skip_special_tokens=skip))
    return {"prompt": texts[0]}
