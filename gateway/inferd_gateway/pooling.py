"""Embed and Score for the routes: batches cut to what the daemon takes, run side by side, joined in order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.backend import CallContext
from inferd_gateway.context import Call
from inferd_gateway.convert import plain_prompt, prompt_list
from inferd_gateway.directory import ServedModel
from inferd_gateway.errors import from_rpc, invalid
from inferd_gateway.schemas.pooling import MAX_INPUTS, EmbeddingRequest, InputBody, PoolingBody

PARALLEL_BATCHES = 4
DEFAULT_BATCH = 64
Prompts = Sequence[common_pb2.Prompt]


class Pooler:
    """The RPCs of one HTTP call to one model. fields: proto field paths to the names the caller used."""

    def __init__(self, call: Call, model: ServedModel, context: CallContext, fields: Mapping[str, str]) -> None:
        self._call = call
        self._model = model
        self._context = context
        self._fields = fields

    @property
    def model(self) -> ServedModel:
        return self._model

    async def embed(self, prompts: Prompts, template: pb.EmbedRequest) -> list[pb.EmbedResponse]:
        """Embeds all prompts; `template` has everything else."""

        def request(part: Prompts, request_id: str) -> pb.EmbedRequest:
            one = pb.EmbedRequest(inputs=part, request_id=request_id)
            one.MergeFrom(template)
            one.request_id = request_id
            return one

        return await self._run(prompts, template.request_id, request, self._model.backend.inference.Embed)

    async def score(
        self, items: Sequence[Any], template: pb.ScoreRequest, fill: Callable[[pb.ScoreRequest, Sequence[Any]], None]
    ) -> list[pb.ScoreResponse]:
        """Scores all items, which `fill` puts into the request's task."""

        def request(part: Sequence[Any], request_id: str) -> pb.ScoreRequest:
            one = pb.ScoreRequest()
            one.CopyFrom(template)
            one.request_id = request_id
            fill(one, part)
            return one

        return await self._run(items, template.request_id, request, self._model.backend.inference.Score)

    async def _run(self, items: Sequence[Any], request_id: str, request: Callable[..., Any], method: Any) -> list[Any]:
        """The replies to all batches, in order. The first error ends them all."""
        size = self._model.info.limits.max_batch_inputs or DEFAULT_BATCH
        parts = [items[start : start + size] for start in range(0, len(items), size)]
        names = [request_id] if len(parts) == 1 else [f"{request_id}-{index}" for index in range(len(parts))]
        slots = asyncio.Semaphore(PARALLEL_BATCHES)

        async def one(part: Sequence[Any], name: str) -> Any:
            async with slots:
                return await self._call_daemon(method, request(part, name))

        tasks = [asyncio.ensure_future(one(part, name)) for part, name in zip(parts, names, strict=True)]
        replies = await self._all(tasks)
        tokens = sum(reply.usage.prompt_tokens for reply in replies)
        self._call.gateway.metrics.prompt_tokens.labels(self._model.name).inc(tokens)
        return replies

    async def _all(self, tasks: Sequence[asyncio.Future[Any]]) -> list[Any]:
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _call_daemon(self, method: Any, request: Any) -> Any:
        backend = self._model.backend
        backend.open_streams += 1
        try:
            return await backend.unary(method, request, self._context)
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, self._fields, client_deadline=self._context.client_deadline) from None
        finally:
            backend.open_streams -= 1


async def pooler_of(call: Call, body: PoolingBody, fields: Mapping[str, str]) -> Pooler:
    """For the model that the body names. Raises ApiError."""
    call.accept(body)
    model = await call.gateway.directory.resolve(body.model)
    call.record.model = model.name
    return Pooler(call, model, call.rpc_context(), fields)


def input_prompts(body: InputBody) -> list[common_pb2.Prompt]:
    """The inputs of a body: one text, one list of ids, or a list of either. Raises a 400 ApiError."""
    inputs = prompt_list(body.input)
    if not inputs:
        raise invalid("input", "input must not be an empty list.")
    if len(inputs) > MAX_INPUTS:
        raise invalid("input", f"input must be a list of at most {MAX_INPUTS}, got {len(inputs)}.")
    if any(not one for one in inputs):
        raise invalid("input", "input must not hold an empty string or list.")
    return [plain_prompt(one, body.add_special_tokens) for one in inputs]


def set_truncation(request: pb.EmbedRequest | pb.ScoreRequest, body: PoolingBody) -> None:
    """truncate_prompt_tokens: -1 cuts to what the model takes, n to n tokens; the end goes unless the side is left."""
    limit = body.truncate_prompt_tokens
    if limit is None:
        return
    if limit == 0:
        raise invalid("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1, got 0.")
    if limit > 0:
        request.max_tokens = limit
    left = body.truncation_side == "left"
    request.truncation = common_pb2.TRUNCATION_KEEP_END if left else common_pb2.TRUNCATION_KEEP_START


def embed_request(body: EmbeddingRequest | Any, model: str, request_id: str) -> pb.EmbedRequest:
    """All but the inputs."""
    dtypes = {"float16": pb.VECTOR_DTYPE_FLOAT16, "bfloat16": pb.VECTOR_DTYPE_BFLOAT16}
    wanted = dtypes.get(body.embed_dtype or "", pb.VECTOR_DTYPE_FLOAT32)
    if wanted != pb.VECTOR_DTYPE_FLOAT32 and body.encoding_format != "base64":
        raise invalid("embed_dtype", f"embed_dtype {body.embed_dtype} needs encoding_format base64.")
    # vLLM's priorities run the other way: there, lower goes first.
    request = pb.EmbedRequest(model=model, dtype=wanted, priority=-(body.priority or 0), request_id=request_id)
    if body.dimensions is not None:
        request.dimensions = body.dimensions
    if body.use_activation is not None:
        request.normalize = body.use_activation
    set_truncation(request, body)
    return request


def score_request(body: Any, model: str, request_id: str) -> pb.ScoreRequest:
    """All but the task."""
    request = pb.ScoreRequest(model=model, priority=-(body.priority or 0), request_id=request_id)
    if body.use_activation is not None:
        request.activation = body.use_activation
    set_truncation(request, body)
    return request
