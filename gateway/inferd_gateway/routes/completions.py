"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from inferd.v1 import inference_pb2 as pb
from inferd_gateway import convert
from inferd_gateway.completion_reply import CompletionReply
from inferd_gateway.context import CurrentCall, new_id
from inferd_gateway.directory import ServedModel
from inferd_gateway.generation import PARALLEL_PROMPTS, Generator
from inferd_gateway.replies import Head
from inferd_gateway.routes.access import KeyRoute
from inferd_gateway.routes.answers import answers, errors
from inferd_gateway.schemas import replies as answered
from inferd_gateway.schemas.completions import CompletionRequest
from inferd_gateway.sse import EventStream, until_disconnect

MAX_PROMPTS = 64
router = APIRouter(route_class=KeyRoute, responses=errors())


@router.post("/v1/completions", responses=answers(answered.Completion, answered.CompletionChunk))
async def create_completion(body: CompletionRequest, call: CurrentCall) -> Response:
    call.accept(body)
    model = await call.gateway.directory.resolve(body.model, call.affinity(body, body.prompt))
    call.record.model = model.name
    convert.check_completion(body, model.info.limits.max_batch_inputs or MAX_PROMPTS)
    generator = Generator(call, model, call.rpc_context(), convert.fields_of(body))
    head = Head(
        new_id("cmpl", body.request_id), "text_completion", body.model or model.public_names[0], model.fingerprint
    )
    call.record.reply_id = head.reply_id
    completion = Completion(generator, model, head, body)
    if body.stream:
        return await EventStream.opened(call.request, completion.stream(), call.gateway.settings.sse_keepalive)
    return await until_disconnect(call.request, completion.whole())


class Completion:
    """One call: all its prompts."""

    def __init__(self, generator: Generator, model: ServedModel, head: Head, body: CompletionRequest) -> None:
        self._generator = generator
        self._model = model
        self._head = head
        self._body = body
        self._special = {token.id: token.text for token in model.info.tokenizer.special_tokens}

    async def stream(self) -> AsyncGenerator[bytes, None]:
        requests = await self._requests()
        reply = self._reply(len(requests))
        # Nothing is shown before every prompt of the first batch was taken: a bad one is a status, not half a stream.
        waiting, held = set(range(min(len(requests), PARALLEL_PROMPTS))), b""
        async with aclosing(self._generator.run_all(requests)) as messages:
            async for prompt, message in messages:
                waiting.discard(prompt)
                held += reply.events(prompt, message)
                if not waiting:
                    yield held
                    held = b""
        yield held + reply.end()

    async def whole(self) -> Response:
        requests = await self._requests()
        reply = self._reply(len(requests))
        async with aclosing(self._generator.run_all(requests)) as messages:
            return JSONResponse(reply.whole([item async for item in messages]))

    async def _requests(self) -> list[pb.GenerateRequest]:
        prompts = convert.prompt_list(self._body.prompt)
        names = (
            [self._head.reply_id] if len(prompts) == 1 else [f"{self._head.reply_id}-{i}" for i in range(len(prompts))]
        )
        return [await self._request(prompt, name) for prompt, name in zip(prompts, names, strict=True)]

    async def _request(self, text: str | list[int], request_id: str) -> pb.GenerateRequest:
        body = self._body
        prompt = convert.plain_prompt(text, body.add_special_tokens)
        if body.truncate_prompt_tokens not in (None, -1):
            cut_left = body.truncation_side != "right"
            prompt = await self._generator.truncated(prompt, body.truncate_prompt_tokens or 0, cut_left=cut_left)
        request = convert.generate_request(body, self._model.name, prompt, request_id)
        constraint = convert.constraint_of(body)
        if constraint is not None:
            request.constraint.CopyFrom(constraint)
        request.output.prompt_text = bool(body.echo)
        if body.logprobs is not None:
            options = convert.logprob_options(body.logprobs, body)
            request.output.logprobs.CopyFrom(options)
            if body.echo:
                request.output.prompt_token_ids = True
                options.top_n = max(body.logprobs, body.prompt_logprobs or 0)
                request.output.prompt_logprobs.CopyFrom(options)
        return request

    def _reply(self, prompts: int) -> CompletionReply:
        hidden = frozenset() if self._body.skip_special_tokens is False else frozenset(self._special)
        return CompletionReply(self._head, self._body, prompts, hidden)
