"""Embed: a batch of inputs to vectors."""

from __future__ import annotations

import time
from functools import partial

from inferd.errors import InvalidParameter
from inferd.models.pooling import Embedding
from inferd.request import PoolingParams
from inferd.server.convert_prompt import check_prompt, encode_prompt, prompt_bytes
from inferd.server.convert_request import TRUNCATIONS
from inferd.server.fields import check_at_most, check_enum
from inferd.server.inputs import Caller, Room, Serving, check_batch, pooled_requests, room_of, vector_of
from inferd.server.tasks import embedding_of, require
from inferd.server.totals import timing_of, usage_of
from inferd.server.vectors import Matrix, encoded, matrix_of, normalized
from inferd.server.window import Window
from inferd.text.tokenizer import Tokenizer
from inferd.v1 import common_pb2, inference_pb2, model_pb2

DTYPES = inference_pb2.VectorDtype.keys()


async def embed(
    pb: inference_pb2.EmbedRequest, serving: Serving, caller: Caller, window: Window
) -> inference_pb2.EmbedResponse:
    """Raises InferdError; nothing is tokenized before every other field has been checked."""
    started = time.monotonic()
    embedding = check_embed(pb, serving)
    tokenizer = serving.model.tokenizer
    room = room_of(pb, input_limit(embedding, serving), "inputs")
    size = sum(map(prompt_bytes, pb.inputs))
    inputs = await serving.pool.run(size, partial(encode_inputs, list(pb.inputs), tokenizer, room))
    params = [PoolingParams(kind=embedding.pooling, num_tokens=len(ids)) for ids in inputs]
    deltas = await window.run_all(pooled_requests(serving, caller, inputs, params))
    matrix = finished(matrix_of([vector_of(delta) for delta in deltas]), pb, embedding)
    response = inference_pb2.EmbedResponse(
        vectors=encoded(matrix, pb.dtype),
        dimensions=matrix.shape[1],
        dtype=pb.dtype or inference_pb2.VECTOR_DTYPE_FLOAT32,
        token_counts=[len(ids) for ids in inputs],
        usage=usage_of(deltas),
        timing=timing_of(deltas, started),
    )
    if pb.readable:
        for row in matrix:
            response.float_vectors.add(values=row.tolist())
    return response


def check_embed(pb: inference_pb2.EmbedRequest, serving: Serving) -> Embedding:
    serving.model.check_name(pb.model)
    require(serving.model, model_pb2.TASK_EMBED)
    embedding = embedding_of(serving.model)
    check_batch("inputs", len(pb.inputs), serving)
    for index, prompt in enumerate(pb.inputs):
        check_prompt(f"inputs[{index}]", prompt, serving.vocab_size)
    check_enum("dtype", pb.dtype, DTYPES)
    check_enum("truncation", pb.truncation, TRUNCATIONS)
    check_at_most("priority", pb.priority, 2**31 - 1, low=-(2**31))
    if pb.HasField("dimensions"):
        check_dimensions(pb.dimensions, embedding)
    return embedding


def check_dimensions(wanted: int, embedding: Embedding) -> None:
    """The model's own size, or one that it was trained to be cut to."""
    if wanted == embedding.dimensions or wanted in embedding.matryoshka:
        return
    sizes = embedding.matryoshka
    listed = ", ".join(map(str, sizes)) if len(sizes) <= 16 else f"{sizes[0]} to {sizes[-1]}"
    allowed = f"one of {listed}" if sizes else f"{embedding.dimensions}: this model's vectors cannot be cut"
    raise InvalidParameter(f"dimensions must be {allowed}, got {wanted}", field="dimensions")


def input_limit(embedding: Embedding, serving: Serving) -> int:
    """Longest input in tokens."""
    context = serving.max_context_tokens
    return context if embedding.max_tokens is None else min(context, embedding.max_tokens)


def encode_inputs(prompts: list[common_pb2.Prompt], tokenizer: Tokenizer, room: Room) -> list[list[int]]:
    """Token ids of checked prompts, cut to fit."""
    inputs = [room.cut(encode_prompt(prompt, tokenizer), tokenizer.prefix, tokenizer.suffix) for prompt in prompts]
    for index, ids in enumerate(inputs):
        if not ids:
            raise InvalidParameter(f"{room.field}[{index}] has no tokens", field=f"{room.field}[{index}]")
    return inputs


def finished(matrix: Matrix, pb: inference_pb2.EmbedRequest, embedding: Embedding) -> Matrix:
    """Cut and normalized as asked for; what was cut is normalized again unless the caller says no."""
    wants_norm = embedding.normalize or pb.HasField("dimensions")
    if pb.HasField("dimensions"):
        matrix = matrix[:, : pb.dimensions]
    return normalized(matrix) if (pb.normalize if pb.HasField("normalize") else wants_norm) else matrix
