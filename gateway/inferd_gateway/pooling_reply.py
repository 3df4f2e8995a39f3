"""Replies of Embed and Score in OpenAI's and vLLM's shapes."""

from __future__ import annotations

import base64
import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

from inferd.v1 import inference_pb2 as pb
from inferd_gateway.schemas.pooling import VectorBody

SIZES = {pb.VECTOR_DTYPE_FLOAT32: 4, pb.VECTOR_DTYPE_FLOAT16: 2, pb.VECTOR_DTYPE_BFLOAT16: 2}


def usage(replies: Sequence[pb.EmbedResponse] | Sequence[pb.ScoreResponse]) -> dict[str, int]:
    """OpenAI's two numbers for what generates nothing."""
    tokens = sum(reply.usage.prompt_tokens for reply in replies)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def listing(reply_id: str, model: str, data: list[dict[str, Any]], used: dict[str, int]) -> dict[str, Any]:
    return {
        "id": reply_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": used,
    }


def vectors(replies: Sequence[pb.EmbedResponse], body: VectorBody) -> list[Any]:
    """One per input: a list of floats, or base64 of the bytes in the order that was asked for."""
    rows = [row for reply in replies for row in raw_rows(reply)]
    if body.encoding_format == "base64":
        size = SIZES[replies[0].dtype]
        big = body.endianness == "big"
        return [base64.b64encode(swapped(row, size) if big else row).decode("ascii") for row in rows]
    return [list(struct.unpack(f"<{len(row) // 4}f", row)) for row in rows]


def raw_rows(reply: pb.EmbedResponse) -> Iterator[bytes]:
    size = reply.dimensions * SIZES[reply.dtype]
    for start in range(0, len(reply.vectors), size):
        yield reply.vectors[start : start + size]


def swapped(row: bytes, size: int) -> bytes:
    """The same numbers with the bytes of each the other way round."""
    result = bytearray(len(row))
    for offset in range(size):
        result[offset::size] = row[size - 1 - offset :: size]
    return bytes(result)


def score_rows(replies: Sequence[pb.ScoreResponse]) -> list[list[float]]:
    """One row of scores per item."""
    return [
        list(reply.scores[start : start + reply.columns])
        for reply in replies
        for start in range(0, len(reply.scores), reply.columns)
    ]


def classes(replies: Sequence[pb.ScoreResponse]) -> list[dict[str, Any]]:
    """vLLM's /classify: the most probable label of each input, and all probabilities."""
    names = list(replies[0].class_names)
    return [
        {"index": index, "label": names[row.index(max(row))], "probs": row, "num_classes": len(row)}
        for index, row in enumerate(score_rows(replies))
    ]


def reranked(scores: list[float], documents: list[str], top_n: int, *, with_documents: bool) -> list[dict[str, Any]]:
    """By falling score; equal ones in the order of the documents. top_n 0: all."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])[: top_n or None]
    results: list[dict[str, Any]] = []
    for index in order:
        result: dict[str, Any] = {"index": index, "relevance_score": scores[index]}
        if with_documents:
            result["document"] = {"text": documents[index]}
        results.append(result)
    return results
