"""Running generations for a route: prompts prepared, errors translated, times and tokens measured."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import grpc

from inferd.v1 import common_pb2
from inferd.v1 import inference_pb2 as pb
from inferd_gateway.backend import Backend, CallContext
from inferd_gateway.context import Call
from inferd_gateway.directory import ServedModel
from inferd_gateway.errors import ApiError, deadline_passed, from_rpc, internal_error, invalid
from inferd_gateway.templates.renderer import Conversation

PARALLEL_PROMPTS = 16


class Generator:
    """The RPCs of one HTTP call to one model. fields: proto field paths to the names the caller used."""

    def __init__(self, call: Call, model: ServedModel, context: CallContext, fields: Mapping[str, str]) -> None:
        self._call = call
        self._metrics = call.gateway.metrics
        self._model = model
        self._context = context
        self.fields = fields

    def name_fields(self, names: Mapping[str, str]) -> None:
        """Further names for errors of this request."""
        self.fields = {**self.fields, **names}

    async def render(self, conversation: Conversation) -> list[tuple[str, bool]]:
        """The prompt of a chat as (text, trusted) runs."""
        model = self._model
        template = model.tool_template if conversation.tools and model.tool_template else model.chat_template
        if template is None and not model.generates:
            message = f"The model {model.name} cannot generate, and has no chat template."
            raise ApiError(400, message, code="unsupported_task")
        if template is None:
            message = f"The model {self._model.name} has no chat template; start the gateway with --chat-template."
            raise ApiError(400, message, code="chat_template_error", param="messages")
        context = self._context
        try:
            return await self._call.gateway.renderer.render(template, conversation, context.remaining())
        except TimeoutError:
            raise deadline_passed(client_deadline=context.client_deadline) from None

    async def tokenize(self, prompt: common_pb2.Prompt, *, strings: bool = False) -> pb.TokenizedInput:
        request = pb.TokenizeRequest(model=self._model.name, inputs=[prompt], vocabulary_strings=strings)
        try:
            reply = await self._model.backend.unary(self._model.backend.inference.Tokenize, request, self._context)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        tokenized: pb.TokenizedInput = reply.inputs[0]
        return tokenized

    async def detokenize(self, inputs: Sequence[Sequence[int]], *, skip_special_tokens: bool = False) -> list[str]:
        ids = [common_pb2.TokenIds(ids=ids) for ids in inputs]
        request = pb.DetokenizeRequest(model=self._model.name, inputs=ids, skip_special_tokens=skip_special_tokens)
        try:
            reply = await self._model.backend.unary(self._model.backend.inference.Detokenize, request, self._context)
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        return list(reply.texts)

    async def truncated(self, prompt: common_pb2.Prompt, keep: int, *, cut_left: bool) -> common_pb2.Prompt:
        """The prompt cut to `keep` tokens."""
        if keep == 0:
            raise invalid("truncate_prompt_tokens", "truncate_prompt_tokens must be -1 or at least 1, got 0.")
        known = prompt.HasField("token_ids")
        ids = list(prompt.token_ids.ids) if known else list((await self.tokenize(prompt)).token_ids)
        return common_pb2.Prompt(token_ids=common_pb2.TokenIds(ids=ids[-keep:] if cut_left else ids[:keep]))

    async def run(self, request: pb.GenerateRequest) -> AsyncGenerator[pb.GenerateResponse, None]:
        """The messages of one generation. Raises ApiError."""
        name, previous, message = self._model.name, 0.0, pb.GenerateResponse()
        between = self._metrics.inter_token_seconds.labels(name)
        self._metrics.open_streams.inc()
        try:
            async with aclosing(self._model.backend.generate(request, self._context, self._elsewhere)) as messages:
                async for message in messages:
                    now = time.monotonic()
                    if previous:
                        between.observe(now - previous)
                    else:
                        self._metrics.first_token_seconds.labels(name).observe(now - self._call.record.started)
                    previous = now
                    if message.HasField("timing"):
                        self._metrics.prompt_tokens.labels(name).inc(message.usage.prompt_tokens)
                        self._metrics.generated_tokens.labels(name).inc(message.usage.completion_tokens)
                    yield message
        except grpc.aio.AioRpcError as error:
            raise self._translate(error) from None
        finally:
            self._metrics.open_streams.dec()
        if not (message.HasField("timing") or message.HasField("usage")):
            raise internal_error()

    async def run_all(
        self, requests: Sequence[pb.GenerateRequest]
    ) -> AsyncGenerator[tuple[int, pb.GenerateResponse], None]:
        """(index of the request, message), interleaved; a few run at a time. The first error ends them all."""
        if len(requests) == 1:
            async with aclosing(self.run(requests[0])) as messages:
                async for message in messages:
                    yield 0, message
            return
        news: asyncio.Queue[tuple[int, pb.GenerateResponse] | None] = asyncio.Queue(maxsize=64)
        slots = asyncio.Semaphore(PARALLEL_PROMPTS)

        async def follow(index: int, request: pb.GenerateRequest) -> None:
            async with slots, aclosing(self.run(request)) as messages:
                async for message in messages:
                    await news.put((index, message))

        async def follow_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for index, request in enumerate(requests):
                        group.create_task(follow(index, request))
            except* ApiError as errors:
                raise errors.exceptions[0] from None
            finally:
                await news.put(None)

        task = asyncio.ensure_future(follow_all())
        try:
            while (item := await news.get()) is not None:
                yield item
            await task
        finally:
            task.cancel()
            while not task.done():
                # The queue may be what the tasks wait for.
                while not news.empty():
                    news.get_nowait()
                await asyncio.wait({task}, timeout=0.01)

    def _elsewhere(self, failed: Backend) -> Backend:
        return self._call.gateway.directory.elsewhere(self._model, failed)

    def _translate(self, error: grpc.aio.AioRpcError) -> ApiError:
        return from_rpc(error, self.fields, client_deadline=self._context.client_deadline)
