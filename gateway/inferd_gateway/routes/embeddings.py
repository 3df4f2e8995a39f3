"""POST /v1/embeddings, /pooling and /classify."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from inferd.v1 import common_pb2, model_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway import pooling_reply as reply
from inferd_gateway.context import CurrentCall, new_id
from inferd_gateway.pooling import (
    Pooler,
    embed_request,
    input_prompts,
    pooler_of,
    score_request,
)
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.pooling import ClassifyRequest, EmbeddingRequest, PoolingRequest
from inferd_gateway.schemas.pooling_replies import ClassifiedList, EmbeddingList, PooledList
from inferd_gateway.sse import until_disconnect

router = APIRouter(route_class=KeyRoute, responses=errors())
FIELDS = {
    "inputs": "input",
    "classes.inputs": "input",
    "normalize": "use_activation",
    "activation": "use_activation",
    "max_tokens": "truncate_prompt_tokens",
    "truncation": "truncate_prompt_tokens",
    "dtype": "embed_dtype",
}


@router.post("/v1/embeddings", responses=answers(EmbeddingList))
async def create_embeddings(body: EmbeddingRequest, call: CurrentCall) -> dict[str, Any]:
    pooler = await pooler_of(call, body, FIELDS)
    prompts, reply_id = input_prompts(body), new_id("embd", body.request_id)
    call.record.reply_id = reply_id
    request = embed_request(body, pooler.model.name, reply_id)
    replies = await until_disconnect(call.request, pooler.embed(prompts, request))
    data = [
        {"index": index, "object": "embedding", "embedding": vector}
        for index, vector in enumerate(reply.vectors(replies, body))
    ]
    return reply.listing(reply_id, body.model or pooler.model.public_names[0], data, reply.usage(replies))


@router.post("/pooling", responses=answers(PooledList))
async def pool(body: PoolingRequest, call: CurrentCall) -> dict[str, Any]:
    pooler = await pooler_of(call, body, FIELDS)
    prompts, reply_id = input_prompts(body), new_id("pool", body.request_id)
    call.record.reply_id = reply_id
    if (body.task or default_task(pooler)) == "embed":
        replies = await until_disconnect(
            call.request, pooler.embed(prompts, embed_request(body, pooler.model.name, reply_id))
        )
        rows, used = reply.vectors(replies, body), reply.usage(replies)
    else:
        scored = await until_disconnect(call.request, classified(pooler, prompts, body, reply_id))
        rows, used = reply.score_rows(scored), reply.usage(scored)
    data = [{"index": index, "object": "pooling", "data": row} for index, row in enumerate(rows)]
    return reply.listing(reply_id, body.model or pooler.model.public_names[0], data, used)


@router.post("/classify", responses=answers(ClassifiedList))
async def classify(body: ClassifyRequest, call: CurrentCall) -> dict[str, Any]:
    pooler = await pooler_of(call, body, FIELDS)
    prompts, reply_id = input_prompts(body), new_id("classify", body.request_id)
    call.record.reply_id = reply_id
    replies = await until_disconnect(call.request, classified(pooler, prompts, body, reply_id))
    name = body.model or pooler.model.public_names[0]
    return reply.listing(reply_id, name, reply.classes(replies), reply.usage(replies))


async def classified(
    pooler: Pooler, prompts: list[common_pb2.Prompt], body: ClassifyRequest | PoolingRequest, reply_id: str
) -> list[pb.ScoreResponse]:
    def fill(request: pb.ScoreRequest, part: Any) -> None:
        request.classes.inputs.extend(part)

    return await pooler.score(prompts, score_request(body, pooler.model.name, reply_id), fill)


def default_task(pooler: Pooler) -> str:
    return "classify" if model_pb2.TASK_CLASSIFY in pooler.model.info.card.tasks else "embed"
