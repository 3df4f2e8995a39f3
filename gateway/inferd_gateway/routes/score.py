"""POST /score and /rerank, each under all the paths that clients know."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway import pooling_reply as reply
from inferd_gateway.context import CurrentCall, new_id
from inferd_gateway.errors import invalid
from inferd_gateway.pooling import Pooler, pooler_of, score_request
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas.pooling import MAX_INPUTS, RerankRequest, ScoreRequest, sides
from inferd_gateway.schemas.pooling_replies import Ranking, ScoredList
from inferd_gateway.sse import until_disconnect

router = APIRouter(route_class=KeyRoute, responses=errors())
FIELDS = {
    "activation": "use_activation",
    "max_tokens": "truncate_prompt_tokens",
    "truncation": "truncate_prompt_tokens",
    "rerank.query": "query",
    "rerank.documents": "documents",
}


@router.post("/score", responses=answers(ScoredList))
@router.post("/v1/score", responses=answers(ScoredList))
async def score(body: ScoreRequest, call: CurrentCall) -> dict[str, Any]:
    first, second, texts_1, texts_2 = checked_sides(body)
    fields = FIELDS | {"rerank.query": first, "rerank.documents": second, "pairs.pairs": second, "pairs": second}
    pooler = await pooler_of(call, body, fields)
    reply_id = new_id("score", body.request_id)
    call.record.reply_id = reply_id
    request = score_request(body, pooler.model.name, reply_id)
    replies = await until_disconnect(call.request, scored(pooler, request, texts_1, texts_2))
    data = [
        {"index": index, "object": "score", "score": value} for index, (value,) in enumerate(reply.score_rows(replies))
    ]
    return reply.listing(reply_id, body.model or pooler.model.public_names[0], data, reply.usage(replies))


@router.post("/rerank", responses=answers(Ranking))
@router.post("/v1/rerank", responses=answers(Ranking))
@router.post("/v2/rerank", responses=answers(Ranking))
async def rerank(body: RerankRequest, call: CurrentCall) -> dict[str, Any]:
    documents = [one if isinstance(one, str) else one.text for one in body.documents]
    for index, text in enumerate(documents):
        if not text:
            raise invalid("documents", f"documents[{index}] must not be empty.")
    pooler = await pooler_of(call, body, FIELDS)
    reply_id = new_id("rerank", body.request_id)
    call.record.reply_id = reply_id
    request = score_request(body, pooler.model.name, reply_id)
    replies = await until_disconnect(call.request, scored(pooler, request, [body.query], documents))
    scores = [value for (value,) in reply.score_rows(replies)]
    return {
        "id": reply_id,
        "model": body.model or pooler.model.public_names[0],
        "usage": reply.usage(replies),
        "results": reply.reranked(
            scores, documents, body.top_n or 0, with_documents=body.return_documents is not False
        ),
    }


async def scored(
    pooler: Pooler, request: pb.ScoreRequest, firsts: list[str], seconds: list[str]
) -> list[pb.ScoreResponse]:
    """One text against many is a rerank, whose first text the daemon reads once; else text by text."""
    if len(firsts) == 1:

        def fill_documents(one: pb.ScoreRequest, part: Any) -> None:
            one.rerank.query.text = firsts[0]
            one.rerank.documents.extend(common_pb2.Prompt(text=text) for text in part)

        return await pooler.score(seconds, request, fill_documents)

    def fill_pairs(one: pb.ScoreRequest, part: Any) -> None:
        for left, right in part:
            one.pairs.pairs.add(first=common_pb2.Prompt(text=left), second=common_pb2.Prompt(text=right))

    return await pooler.score(list(zip(firsts, seconds, strict=True)), request, fill_pairs)


def checked_sides(body: ScoreRequest) -> tuple[str, str, list[str], list[str]]:
    """The names and texts of both sides: one or several against as many, or one against several."""
    first, second, given = sides(body)
    if not first:
        got = ", ".join(given) or "none"
        raise invalid("text_1", f"text_1 and text_2, or queries and documents or items, are required; got {got}.")
    texts = [[given[name]] if isinstance(given[name], str) else given[name] for name in (first, second)]
    for name, values in zip((first, second), texts, strict=True):
        if not values or not all(values):
            raise invalid(name, f"{name} must hold at least one text, and no empty one.")
        if len(values) > MAX_INPUTS:
            raise invalid(name, f"{name} must be a list of at most {MAX_INPUTS}, got {len(values)}.")
    if len(texts[0]) not in (1, len(texts[1])):
        raise invalid(first, f"{first} must be one text or as many as {second} ({len(texts[1])}), got {len(texts[0])}.")
    return first, second, texts[0], texts[1]
